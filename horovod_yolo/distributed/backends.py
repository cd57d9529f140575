"""Which back end connects this process to the other ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from horovod_yolo.core.engines import ENGINES
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.horovod_build import horovod_built_with
from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.distributed.launchers.launcher import Launcher

if TYPE_CHECKING:
    from horovod_yolo.distributed.communicator import Communicator


VARIABLE = "HOROVOD_YOLO_ENGINE"


class Backend(Protocol):
    """A class of communicators. It knows how ranks find each other, how they talk, and what a lost one is."""

    @classmethod
    def join(cls, launched: Launcher) -> Communicator:
        """Find the other ranks of the job. *Collective.*

        Raises:
            UserError: they are not those that were launched.
        """


def connect() -> Communicator:
    """Join the job this process was launched into, or be a job of one.

    Raises:
        UserError: launched on several ranks, but not so that they find each other.
    """
    launched = launcher()
    refuse_stranger(launched)
    return backend_for(launched, engine()).join(launched)


def engine(environ: Mapping[str, str] = os.environ) -> str:
    """What ranks shall talk through: horovod, torch, or auto for what suits their launcher.

    Raises:
        UserError: the variable holds something else.
    """
    wanted = environ.get(VARIABLE) or ENGINES[0]
    if wanted not in ENGINES:
        raise UserError(f"engine {wanted!r}", where=VARIABLE, fix=f"take one of {', '.join(ENGINES)}")
    return wanted


def engine_without_launcher(wanted: str) -> str:
    """What ranks talk through that we start ourselves: auto is Horovod where it is installed, else torch."""
    if wanted != "auto":
        return wanted
    return "torch" if horovod_built_with() is None else "horovod"


def note_engine(argv: Sequence[str]) -> None:
    """Keep what ``--engine`` says. Ranks must talk before they parse, to complain of a flag together."""
    for flag, value in zip(argv, [*argv, ""][1:], strict=True):
        if flag == "--engine" or flag.startswith("--engine="):
            wanted = value if flag == "--engine" else flag.partition("=")[2]
            os.environ[VARIABLE] = wanted if wanted in ENGINES else ENGINES[0]  # the parser refuses others


def backend_for(launched: Launcher, wanted: str = ENGINES[0]) -> type[Backend]:
    """The back end of the ranks that this launcher starts.

    Args:
        launched: by whom.
        wanted: one of `ENGINES`.

    Raises:
        UserError: it does not load, or does not suit the launcher.
    """
    from horovod_yolo.distributed.local import LocalCommunicator  # brings torch, which looking does not need

    if isinstance(launched, Alone):
        return LocalCommunicator
    if wanted == "torch" or (wanted == "auto" and launched.for_torch):
        from horovod_yolo.distributed.torch_backend import TorchCommunicator

        return TorchCommunicator
    if launched.for_torch:
        raise UserError(
            f"--engine horovod: ranks started by {launched.name} do not find each other through Horovod",
            fix="start them with horovodrun or mpirun, or leave --engine out",
        )
    try:
        from horovod_yolo.distributed.horovod_backend import HorovodCommunicator
    except ImportError as error:
        if launched.size == 1:
            return LocalCommunicator
        _refuse_namesake()
        raise UserError(
            f"launched on {launched.size} ranks, but Horovod does not load ({error})",
            fix="build it for this Python and torch with horovod-yolo install-horovod, or use torchrun",
        ) from None
    return HorovodCommunicator


def _refuse_namesake() -> None:
    """Raise where a folder of that name, found earlier, hides Horovod.

    Raises:
        UserError: names the folder.
    """
    spec = find_spec("horovod")
    for folder in (spec and spec.submodule_search_locations) or ():
        if not Path(folder, "torch").is_dir():
            raise UserError("this folder hides Horovod", where=folder, fix="rename it, or start elsewhere")


def refuse_stranger(launched: Launcher) -> None:
    """Raise where several processes were launched that do not find each other.

    Raises:
        UserError: says how to launch.
    """
    if launched.ranks_meet:
        return
    rank, size, names = launched.rank, launched.size, (launched.rank_name, launched.size_name)
    raise UserError(
        f"the environment says that this is rank {rank} of {size} ({', '.join(names)}: {launched.name}), "
        "but ranks do not find each other that way, and each would train alone",
        fix=f"start them with `horovod-yolo launch --hosts localhost:{size} -- train ...`, torchrun, mpirun "
        f"or `srun --mpi=pmix`; for a single process `unset {' '.join(names)}`",
    )
