"""Launchers whose ranks no back end lets find each other.

Each process would train the whole run by itself, unnoticed. So they are known here in order to be refused.
One that merely reserves places, as Slurm's ``salloc`` does, starts one process, which may well be alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from horovod_yolo.distributed.launchers.horovodrun import Horovodrun
from horovod_yolo.distributed.launchers.launcher import Launcher, number
from horovod_yolo.distributed.launchers.mpi import Mpich, OpenMpi
from horovod_yolo.distributed.launchers.torchrun import Torchrun


class Stranger(Launcher):
    """Several processes that do not find each other."""

    ranks_meet = False

    @classmethod
    def is_whole(cls, environ: Mapping[str, str]) -> bool:
        """Where it is one process there is nothing to refuse."""
        return (number(environ, cls.size_name) or 0) > 1


class TorchrunWithoutAddress(Stranger):
    """torchrun's variables without the address where its ranks meet."""

    name = "a PyTorch job without MASTER_ADDR and MASTER_PORT"
    rank_name, size_name = Torchrun.rank_name, Torchrun.size_name
    local_rank_name = Torchrun.local_rank_name


class HorovodrunWithoutAddress(Stranger):
    """horovodrun's variables, as a shell may keep them, without the address where its ranks meet."""

    name = "horovodrun without its address"
    rank_name, size_name = Horovodrun.rank_name, Horovodrun.size_name
    local_rank_name = Horovodrun.local_rank_name


class OpenMpiWithoutServer(Stranger):
    """Open MPI's variables where `OpenMpi` finds the rest missing."""

    name = "Open MPI"
    rank_name, size_name = OpenMpi.rank_name, OpenMpi.size_name
    local_rank_name = OpenMpi.local_rank_name


class MpichWithoutServer(Stranger):
    """MPICH's variables where `Mpich` finds the rest missing."""

    name = "MPICH"
    rank_name, size_name, local_rank_name = Mpich.rank_name, Mpich.size_name, Mpich.local_rank_name


class Mvapich(Stranger):
    """MVAPICH2's ``mpirun_rsh``."""

    name = "MVAPICH2"
    rank_name, size_name = "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"
    local_rank_name = "MV2_COMM_WORLD_LOCAL_RANK"


class Jsrun(Stranger):
    """LSF's ``jsrun``."""

    name = "LSF's jsrun"
    rank_name, size_name = "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"
    local_rank_name = "JSM_NAMESPACE_LOCAL_RANK"


class Flux(Stranger):
    """``flux run``."""

    name = "Flux"
    rank_name, size_name, local_rank_name = "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"


class Condor(Stranger):
    """A node of HTCondor's parallel universe."""

    name = "HTCondor"
    rank_name, size_name = "_CONDOR_PROCNO", "_CONDOR_NPROCS"


class SlurmWithoutPmix(Stranger):
    """``srun`` with another ``--mpi`` than pmix."""

    name = "srun without --mpi=pmix"
    rank_name, size_name, local_rank_name = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"
