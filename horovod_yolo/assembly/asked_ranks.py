"""The arguments of a call from Python that tell of ranks: which are to be started, or should be there."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_yolo.assembly.world import Wish, World, require_as_launched, world_to_start
from horovod_yolo.config.keywords import device_name
from horovod_yolo.core.engines import ENGINES
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.backends import VARIABLE
from horovod_yolo.distributed.backends import engine as engine_set
from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.found import launcher


@dataclass(frozen=True)
class AskedRanks:
    """The arguments of a call that tell of ranks."""

    np: int | None
    hosts: str | None
    engine: str | None
    device: object

    def to_start(self) -> World | None:
        """The ranks that this process has to start; None where there are some, or it is to work alone."""
        if not isinstance(launcher(), Alone):
            return None
        if self.engine is not None and self.engine not in ENGINES:
            raise UserError(f"engine is {self.engine!r:.60}", fix=f"take one of {', '.join(ENGINES)}")
        return world_to_start(self._wish(), self.engine or engine_set(), launcher())

    def require_as_launched(self) -> None:
        """Raise where a launcher has started other ranks than are asked for."""
        require_as_launched(self._wish(), launcher())
        if self.engine not in (None, engine_set()) and not isinstance(launcher(), Alone):
            raise UserError(
                f"engine is {self.engine!r:.60}, and the ranks have met already",
                fix=f"set {VARIABLE} in the environment that Python starts with",
            )

    def _wish(self) -> Wish:
        np, hosts = self.np, self.hosts
        if np is not None and not isinstance(np, int):
            raise UserError(f"np is {np!r:.60}", fix="it must be a number of ranks, such as 2")
        if hosts is not None and not isinstance(hosts, str):
            raise UserError(f"hosts is {hosts!r:.60}", fix='write them as "host1:4,host2:4"')
        return Wish(np, hosts or "", device_name("" if self.device is None else self.device))
