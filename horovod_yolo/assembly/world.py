"""The ranks that a command or a call asks for itself: ``--np 2``, ``device=[0, 1]``, ``hosts="host1:4"``.

Under a launcher the ranks are there. Without one they are started, or the process is a job of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.backends import engine_without_launcher
from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.launcher import Launcher
from horovod_yolo.launch.hostfile import Host, parse_hosts
from horovod_yolo.launch.plan import fit


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        ranks: their number; None for as many as devices or slots.
        hosts: ``host1:4,host2:4``; empty for this host.
        device: as ``--device`` has it: several numbers ask for a rank each.
    """

    ranks: int | None = None
    hosts: str = ""
    device: str = ""

    @property
    def devices(self) -> Sequence[str]:
        """The numbers of GPUs, where several are named."""
        names = self.device.partition(":")[2] or self.device
        return names.split(",") if "," in names else ()


@dataclass(frozen=True)
class World:
    """Ranks to start: as many as slots, through Horovod or torch."""

    hosts: tuple[Host, ...]
    engine: str

    @property
    def size(self) -> int:
        """The number of ranks."""
        return sum(host.slots for host in self.hosts)

    @property
    def flags(self) -> list[str]:
        """Those of ``horovod-yolo launch``."""
        through = ["--torch"] if self.engine == "torch" else []
        return [*through, "--hosts", ",".join(map(str, self.hosts))]

    def __str__(self) -> str:
        ranks = f"{self.size} rank{'s' if self.size > 1 else ''}"
        through = "torch.distributed" if self.engine == "torch" else "Horovod"
        return f"starting {ranks} on {', '.join(host.name for host in self.hosts)}, through {through}"


def world_to_start(wish: Wish, engine: str, launched: Launcher) -> World | None:
    """The ranks that this process has to start, None where it is one itself.

    Args:
        wish: what was asked for.
        engine: what ranks shall talk through, one of `ENGINES`.
        launched: who started this process.

    Raises:
        UserError: the wish does not fit what is there: the launch, the devices, the slots.
    """
    require_as_launched(wish, launched)
    if not isinstance(launched, Alone):
        return None
    if wish.hosts:
        hosts = fit(parse_hosts(wish.hosts, "hosts"), wish.ranks)
        _require_use_of(wish, min(host.slots for host in hosts), hosts[0].name)
        return World(hosts, engine_without_launcher(engine))
    size = wish.ranks or len(wish.devices) or 1
    if wish.devices:
        _require_here(wish)
        _require_use_of(wish, size, "this host")
    return World((Host("localhost", size),), engine_without_launcher(engine)) if size > 1 else None


def require_as_launched(wish: Wish, launched: Launcher) -> None:
    """Ranks that a launcher has started are not to start others.

    Raises:
        UserError: they are others than was wished for, or the wish is none.
    """
    if wish.ranks is not None and (isinstance(wish.ranks, bool) or wish.ranks < 1):
        raise UserError(f"np is {wish.ranks}", fix="it must be 1 or more")
    if isinstance(launched, Alone):
        return
    started = f"{launched.name} has started {launched.size} rank{'s' if launched.size > 1 else ''}"
    if wish.hosts:
        raise UserError(f"hosts={wish.hosts}, but {started}", fix="leave hosts out under a launcher")
    if wish.ranks not in (None, launched.size):
        raise UserError(f"np={wish.ranks}, but {started}", fix="leave np out under a launcher")


def _require_use_of(wish: Wish, ranks: int, where: str) -> None:
    """Each device that is named needs a rank."""
    if ranks < len(wish.devices):
        raise UserError(
            f"device {wish.device} names {len(wish.devices)} GPUs, and {where} has {ranks} rank"
            + "s" * (ranks > 1),
            fix="give each GPU a rank, or name fewer",
        )


def _require_here(wish: Wish) -> None:
    """The devices must be there: nothing is started for a rank that cannot have its own."""
    import torch  # takes seconds; without numbers of GPUs it is not needed here

    kind = wish.device.partition(":")[0] if ":" in wish.device else "cuda"
    module = getattr(torch, kind, None)
    here = module.device_count() if module is not None and module.is_available() else 0
    missing = [number for number in wish.devices if not number.strip().isdecimal() or int(number) >= here]
    if missing:
        has = f"{here} GPU{'s' if here > 1 else ''}" if here else "no GPU that PyTorch can use"
        count = len(wish.devices)
        raise UserError(
            f"device {wish.device} names GPU {missing[0]}, this host has {has}",
            fix=f"use np={count} (--np {count}) for {count} ranks on the CPU",
        )
