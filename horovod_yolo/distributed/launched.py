"""Was this process launched as one of several? Reads the launcher's variables, nothing else.

Where some other launcher says that it started several processes, each of them would train the whole run by
itself, unnoticed. That is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from horovod_yolo.core.errors import UserError

if TYPE_CHECKING:
    from horovod_yolo.distributed.communicator import Communicator

# (rank, size) as set by horovodrun over Gloo, Open MPI's mpirun (horovodrun --mpi too), MPICH's, and Slurm's
# `srun --mpi=pmix`.
LAUNCHERS = (
    ("HOROVOD_RANK", "HOROVOD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", "SLURM_NTASKS"),
)
# The same for launchers through which ranks do not find each other here. One that merely reserves places, as
# Slurm's salloc does, starts one process, which may well be alone.
STRANGERS = (
    ("torchrun or a PyTorch job", "RANK", "WORLD_SIZE"),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MVAPICH2", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("LSF's jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    ("Flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    ("srun without --mpi=pmix", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
_LOCAL_RANKS = (
    *("HOROVOD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
    *("SLURM_LOCALID", "LOCAL_RANK"),
)
_LOCAL_SIZES = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def launched_rank(environ: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(rank, size) given by the launcher; None for a process started alone.

    What does not fit together is no launch: variables that are left over must not make this process a rank of
    a job that does not exist.
    """
    for names in LAUNCHERS:
        rank, size = (_number(environ, name) for name in names)
        if rank is not None and size is not None and rank < size and _is_whole(names[0], environ):
            return rank, size
    return None


def _is_whole(rank: str, environ: Mapping[str, str]) -> bool:
    """Whether the rest of what the launcher that sets ``rank`` sets is there too."""
    if rank == "OMPI_COMM_WORLD_RANK":
        # Without the server that the last two stand for, MPI itself would take each process for a job of one.
        local = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
        return local is not None and any(name in environ for name in ("PMIX_RANK", "OMPI_MCA_ess_base_jobid"))
    if rank == "PMIX_RANK":
        # A batch script has SLURM_NTASKS, SLURM_PROCID=0 and no PMIX_RANK: it is alone.
        same = _number(environ, "SLURM_PROCID") == _number(environ, "PMIX_RANK")
        several = (_number(environ, "SLURM_NTASKS") or 0) > 1
        return same and several and _number(environ, "SLURM_STEP_ID") is not None
    return True


def launched_elastic(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether horovodrun's elastic launch started this process: ranks may come and go."""
    return environ.get("HOROVOD_ELASTIC") == "1" and launched_rank(environ) is not None


def first_here(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of its host, as far as its launcher tells."""
    known = (_number(environ, name) for name in _LOCAL_RANKS)
    return next((rank for rank in known if rank is not None), 0) == 0


def ranks_here(environ: Mapping[str, str] = os.environ) -> int:
    """How many ranks the launcher started on this host, 1 where it does not tell."""
    known = (_number(environ, name) for name in _LOCAL_SIZES)
    return next((size for size in known if size), 1)


def refuse_strangers(environ: Mapping[str, str] = os.environ) -> None:
    """Raise where several processes were launched that do not find each other.

    Raises:
        UserError: says how to launch.
    """
    if launched_rank(environ) is not None:
        return
    for who, rank_name, size_name in STRANGERS:
        rank, size = _number(environ, rank_name), _number(environ, size_name)
        if rank is not None and size is not None and size > 1:
            raise UserError(
                f"the environment says that this is rank {rank} of {size} ({rank_name}, {size_name}: {who}), "
                "but ranks do not find each other that way, and each would train alone",
                fix=f"start them with `horovod-yolo launch --hosts localhost:{size} -- train ...`, mpirun or "
                f"`srun --mpi=pmix`; for a single process `unset {rank_name} {size_name}`",
            )


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def connect() -> Communicator:
    """Join the job this process was launched into, or be a job of one.

    Raises:
        UserError: launched on several ranks, but not so that they find each other.
    """
    refuse_strangers()
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
    comm = HorovodCommunicator()
    if comm.size != launched[1] and not launched_elastic():
        raise UserError(
            f"launched as rank {launched[0]} of {launched[1]}, but Horovod finds {comm.size} ranks",
            fix="its MPI is not the launcher's: use `horovod-yolo launch` or this environment's mpirun",
        )
    return comm
