"""The ``mpirun`` of Open MPI and of MPICH. Intel MPI sets MPICH's variables."""

from __future__ import annotations

from collections.abc import Mapping

from horovod_yolo.distributed.launchers.launcher import Launcher, number


class OpenMpi(Launcher):
    """Its ``mpirun``, which ``horovodrun --mpi`` calls too."""

    name = "Open MPI"
    over_mpi = True
    rank_name, size_name = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"
    local_rank_name, local_size_name = "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"

    @classmethod
    def is_whole(cls, environ: Mapping[str, str]) -> bool:
        """With the server behind it: without, MPI itself would take each process for a job of one."""
        served = any(name in environ for name in ("PMIX_RANK", "OMPI_MCA_ess_base_jobid"))
        return served and number(environ, cls.local_rank_name) is not None


class Mpich(Launcher):
    """Its ``mpirun``, also called ``mpiexec.hydra``."""

    name = "MPICH"
    over_mpi = True
    rank_name, size_name = "PMI_RANK", "PMI_SIZE"
    local_rank_name, local_size_name = "MPI_LOCALRANKID", "MPI_LOCALNRANKS"

    @classmethod
    def is_whole(cls, environ: Mapping[str, str]) -> bool:
        """With a way to the server behind it, as Hydra and Cray's launchers name it."""
        return any(name in environ for name in ("PMI_FD", "PMI_PORT", "PMI_CONTROL_PORT", "PALS_APID"))
