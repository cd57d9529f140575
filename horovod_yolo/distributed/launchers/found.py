"""Which launcher started this process."""

from __future__ import annotations

import os
from collections.abc import Mapping

from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.horovodrun import Horovodrun
from horovod_yolo.distributed.launchers.launcher import Launcher
from horovod_yolo.distributed.launchers.mpi import Mpich, OpenMpi
from horovod_yolo.distributed.launchers.slurm import Slurm
from horovod_yolo.distributed.launchers.strangers import (
    Condor,
    Flux,
    HorovodrunWithoutAddress,
    Jsrun,
    MpichWithoutServer,
    Mvapich,
    OpenMpiWithoutServer,
    SlurmWithoutPmix,
    TorchrunWithoutAddress,
)
from horovod_yolo.distributed.launchers.torchrun import Torchrun

# The innermost first: torchrun is called by srun, horovodrun inside an MPI job, and mpirun starts its daemons
# with srun.
LAUNCHERS: tuple[type[Launcher], ...] = (Torchrun, Horovodrun, OpenMpi, Mpich, Slurm)
STRANGERS: tuple[type[Launcher], ...] = (
    TorchrunWithoutAddress,
    HorovodrunWithoutAddress,
    OpenMpiWithoutServer,
    Mvapich,
    Jsrun,
    Flux,
    Condor,
    SlurmWithoutPmix,
    MpichWithoutServer,
)


def launcher(environ: Mapping[str, str] = os.environ) -> Launcher:
    """The launcher of the process whose environment it is; `Alone` for none."""
    found = (kind.find(environ) for kind in (*LAUNCHERS, *STRANGERS))
    return next((one for one in found if one is not None), Alone.find(environ))
