"""What ranks are started with: Gloo, MPI or torch, by what this host's Horovod was built with.

conda-forge's Horovod has no Gloo, others have no MPI. Without Gloo there are neither `horovodrun --gloo` nor
elastic jobs.
"""

from __future__ import annotations

from collections.abc import Collection

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.horovod_build import horovod_built_with
from horovod_yolo.launch.plan import Launcher

FLAGS: dict[Launcher, str] = {
    "horovodrun-gloo": "--gloo",
    "horovodrun-mpi": "--mpi",
    "mpirun": "--mpirun",
    "torch": "--torch",
}
NOT_THERE = "Horovod is not installed"
WITHOUT_BOTH = "Horovod is built with neither Gloo nor MPI: through it no rank finds another"
WITHOUT_GLOO = "Horovod is built without Gloo: neither horovodrun --gloo nor elastic jobs work"
WITHOUT_MPI = "Horovod is built without MPI: neither horovodrun --mpi nor mpirun work"
_BUILD = "horovod-yolo install-horovod builds one with Gloo and MPI"


def lacks(built: Collection[str] | None) -> str:
    """What cannot work with a Horovod that was built with these, in a line; empty where all does."""
    if built is None:
        return NOT_THERE
    if not {"Gloo", "MPI"} & set(built):
        return WITHOUT_BOTH
    return WITHOUT_GLOO if "Gloo" not in built else WITHOUT_MPI if "MPI" not in built else ""


def chosen(wanted: Launcher | None, *, elastic: bool) -> tuple[Launcher, str]:
    """The launcher of a job, and a note for the user where it is not the usual one, Gloo's.

    Args:
        wanted: named by a flag; None to choose.
        elastic: whether ranks may come and go.

    Raises:
        UserError: this host's Horovod was built without what is wanted.
    """
    return choose(wanted, horovod_built_with(), elastic=elastic)


def choose(wanted: Launcher | None, built: Collection[str] | None, *, elastic: bool) -> tuple[Launcher, str]:
    """As `chosen`, for a Horovod that was ``built`` with these; None where there is none."""
    has, why = set(built or ()), lacks(built)
    usable: dict[Launcher, bool] = {
        "horovodrun-gloo": "Gloo" in has,
        "horovodrun-mpi": "MPI" in has,
        "mpirun": "MPI" in has,
        "torch": True,
    }
    if elastic and wanted in (None, "horovodrun-gloo") and not usable["horovodrun-gloo"]:
        raise UserError(why, where="--elastic", fix=f"{_BUILD}; or use --torch --max-restarts 3")
    there = next(launcher for launcher, can in usable.items() if can)
    if wanted is None:
        unusual = there != "horovodrun-gloo"
        return there, f"{why}. Ranks are started with {FLAGS[there]}" if unusual else ""
    if not usable[wanted]:
        raise UserError(why, where=FLAGS[wanted], fix=f"use {FLAGS[there]}; {_BUILD}")
    return wanted, ""
