"""Was this process launched as one of several? Reads the launcher's variables, nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from horovod_yolo.errors import UserError

if TYPE_CHECKING:
    from horovod_yolo.distributed.comm import Communicator

# (rank, size) as set by horovodrun over Gloo, Open MPI's mpirun (horovodrun --mpi too) and MPICH's.
LAUNCHERS = (
    ("HOROVOD_RANK", "HOROVOD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)


def launched_rank(environ: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(rank, size) given by the launcher; None for a process started alone."""
    for rank, size in LAUNCHERS:
        if environ.get(rank, "").isdigit() and environ.get(size, "").isdigit():
            return int(environ[rank]), int(environ[size])
    return None


def connect() -> Communicator:
    """Join the job this process was launched into, or be a job of one.

    Raises:
        UserError: launched on several ranks without a working Horovod.
    """
    from horovod_yolo.distributed.local import LocalCommunicator  # brings torch, which looking does not need

    launched = launched_rank()
    if launched is None:
        return LocalCommunicator()
    try:
        from horovod_yolo.distributed.horovod_backend import HorovodCommunicator
    except ImportError as error:
        if launched[1] == 1:
            return LocalCommunicator()
        raise UserError(
            f"launched on {launched[1]} ranks, but Horovod does not load ({error})",
            fix="build it for this Python and torch with launch/install_horovod.sh",
        ) from None
    return HorovodCommunicator()
