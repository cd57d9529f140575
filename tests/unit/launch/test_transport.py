"""How ranks are started where Horovod was built without Gloo or without MPI."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.horovod_build import horovod_built_with
from horovod_yolo.doctor import probe
from horovod_yolo.launch.plan import Launcher
from horovod_yolo.launch.transport import choose, lacks

BOTH, GLOO, MPI = ("MPI", "Gloo", "NCCL"), ("Gloo",), ("MPI", "NCCL")
NONE: tuple[str, ...] = ("NCCL",)
NO_GLOO = "Horovod is built without Gloo: neither horovodrun --gloo nor elastic jobs work"
NEITHER = "Horovod is built with neither Gloo nor MPI: through it no rank finds another"
NO_MPI = "Horovod is built without MPI: neither horovodrun --mpi nor mpirun work"


@pytest.mark.parametrize(
    ("wanted", "built", "launcher", "note"),
    [
        (None, BOTH, "horovodrun-gloo", ""),
        ("mpirun", BOTH, "mpirun", ""),
        (None, GLOO, "horovodrun-gloo", ""),
        (None, MPI, "horovodrun-mpi", f"{NO_GLOO}. Ranks are started with --mpi"),
        (None, None, "torch", "Horovod is not installed. Ranks are started with --torch"),
        (None, NONE, "torch", f"{NEITHER}. Ranks are started with --torch"),
        ("torch", BOTH, "torch", ""),
        ("horovodrun-mpi", MPI, "horovodrun-mpi", ""),
        ("mpirun", MPI, "mpirun", ""),
    ],
)
def test_what_is_there_is_taken(
    wanted: Launcher | None, built: Collection[str] | None, launcher: Launcher, note: str
) -> None:
    assert choose(wanted, built, elastic=False) == (launcher, note)


@pytest.mark.parametrize(
    ("wanted", "built", "elastic", "words"),
    [
        (
            "horovodrun-gloo",
            MPI,
            False,
            rf"--gloo: {NO_GLOO}. use --mpi; horovod-yolo install-horovod builds",
        ),
        ("horovodrun-mpi", GLOO, False, rf"--mpi: {NO_MPI}. use --gloo"),
        ("mpirun", GLOO, False, rf"--mpirun: {NO_MPI}. use --gloo"),
        (
            None,
            MPI,
            True,
            rf"--elastic: {NO_GLOO}. horovod-yolo install-horovod builds one with Gloo and MPI; or",
        ),
        (None, None, True, r"--elastic: Horovod is not installed"),
        ("mpirun", NONE, False, rf"--mpirun: {NEITHER}. use --torch"),
    ],
)
def test_what_cannot_work_is_a_line(
    wanted: Launcher | None, built: Collection[str] | None, elastic: bool, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        choose(wanted, built, elastic=elastic)
    assert lacks(built)
    assert choose(None, GLOO, elastic=True) == ("horovodrun-gloo", "")


def test_the_file_of_the_library_tells() -> None:
    """The same to `launch` here and to `doctor` on other hosts; that it is the truth a slow test shows."""
    built = horovod_built_with()
    found = probe._horovod()
    assert built is not None and found is not None
    assert {"MPI", "Gloo"} <= set(built) and list(built) == found["backends"]
