"""What Horovod and MPI read when they start."""

from __future__ import annotations

import os

import torch

from horovod_yolo.distributed.launchers.horovodrun import Horovodrun

# What Horovod reads when it starts, unless the user has set it. It names a rank that is late for a call after
# the first and ends the job after the second, which has to outlast what one rank may do alone, as reading the
# labels of its part from a slow disk.
NAMED_AFTER, ENDED_AFTER = "HOROVOD_STALL_CHECK_TIME_SECONDS", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"
DEFAULTS = {NAMED_AFTER: "30", ENDED_AFTER: "600"}
# On CPUs what runs beside the computation takes its core. All ranks talk to each other in each of Horovod's
# cycles (of 1 ms by itself) also when there is nothing to sum, and Open MPI spins while it waits.
# Elastic jobs keep Horovod's own cycle: at 10 ms a survivor and a newcomer were seen to send each other their
# gradients in pieces of different sizes, which ends a rank.
QUIET = {"HOROVOD_CYCLE_TIME": "10", "OMPI_MCA_mpi_yield_when_idle": "1"}  # milliseconds; whether


def prepare() -> None:
    """Set what Horovod and MPI read when they start."""
    os.environ["HOROVOD_DISABLE_GROUP_FUSION"] = "1"  # see HorovodCommunicator
    quiet = {} if torch.cuda.is_available() or Horovodrun.is_elastic(os.environ) else QUIET
    for name, value in {**DEFAULTS, **quiet}.items():
        os.environ[name] = os.environ.get(name) or value  # Horovod takes an empty one for 0
