"""One rank of the trial job: ``python -m horovod_yolo.doctor.trial_rank SECONDS``."""

from __future__ import annotations

import json
import signal
import sys
import time

import torch

from horovod_yolo.distributed.backends import connect
from horovod_yolo.distributed.communicator import Communicator

ELEMENTS = 1 << 18  # of float32: 1 MiB
TIMES = 4  # the first one also makes connections


def main(seconds: int) -> None:
    """Sum ones over all ranks, a few times; rank 0 prints the best time."""
    signal.alarm(seconds)  # where a host is cut off, the others do not wait for it for ever
    comm = connect()
    device = _device(comm)
    times = []
    for i in range(TIMES):
        ones = torch.ones(ELEMENTS, device=device)
        start = time.perf_counter()
        total = comm.allreduce_sum(ones, f"trial.{i}").wait().cpu()
        times.append(time.perf_counter() - start)
        if not torch.equal(total, torch.full((ELEMENTS,), float(comm.size))):
            raise RuntimeError(f"a sum of ones over {comm.size} ranks is {total.min():g} to {total.max():g}")
    if comm.rank == 0:
        result = {"seconds": min(times), "bytes": ELEMENTS * 4, "device": device.type}
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    comm.close()


def _device(comm: Communicator) -> torch.device:
    """A GPU on every rank, its own where NCCL wants that; else the CPU on every rank. *Collective.*"""
    gpus = torch.cuda.device_count()
    needed = comm.local_size if comm.one_rank_a_gpu else 1
    if not all(comm.allgather_object(gpus >= needed)):
        return torch.device("cpu")
    device = torch.device("cuda", comm.local_rank % gpus)
    torch.cuda.set_device(device)
    return device


if __name__ == "__main__":
    main(int(sys.argv[1]))
