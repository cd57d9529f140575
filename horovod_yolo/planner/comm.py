"""How long the ranks need for a sum, by its size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from horovod_yolo.distributed.communicator import OF_BATCH_NORM, Communicator, Pending
from horovod_yolo.planner.fit import latency_and_slope
from horovod_yolo.planner.links import Link, ring_link

FLOAT32_BYTES = 4
SMALLEST_BYTES = 256
GROWTH = 8  # of the sizes, from one to the next
FEWEST, MOST = 3, 60  # sums of a size
SMALL_BYTES, SMALL_SUMS = 2048, 30  # as of batch norm

Times = list[tuple[int, float]]  # bytes, seconds
Start = Callable[[Tensor, str], Pending]


def measure_allreduce(comm: Communicator, device: torch.device, largest: int, seconds: float) -> Times:
    """Sum float32 numbers as gradients are, in messages from 256 bytes on, one after the other. *Collective.*

    Args:
        comm: two ranks or more.
        device: where the numbers lie.
        largest: bytes of the largest message.
        seconds: for all of it, about; a slow network ends it at a smaller message.

    Returns:
        The median of the sums of each size, the mean over ranks: the same on all of them.
    """
    sizes = sizes_up_to(largest)
    found: Times = []
    left = seconds
    for size in sizes:
        first = _timed(comm, comm.messages.sum_in_place, device, size, 1)[0]
        share = left / (len(sizes) - len(found))
        repeats = int(min(max(share / first, FEWEST), MOST))
        if len(found) >= FEWEST and first * FEWEST > left:
            break
        taken = _timed(comm, comm.messages.sum_in_place, device, size, repeats)
        left -= sum(taken) + first
        found.append((size, float(np.median(taken))))
    return found


def measure_small_sum(comm: Communicator, device: torch.device) -> float:
    """Seconds of a sum of a few numbers, as batch norm makes them. *Collective.*"""
    return float(np.median(_timed(comm, comm.allreduce_sum, device, SMALL_BYTES, SMALL_SUMS, OF_BATCH_NORM)))


def sizes_up_to(largest: int) -> list[int]:
    """Bytes of the messages that are tried, the largest last."""
    sizes = []
    size = SMALLEST_BYTES
    while size < largest:
        sizes.append(size)
        size *= GROWTH
    return [*sizes, max(largest // FLOAT32_BYTES, 1) * FLOAT32_BYTES]


def link_of(times: Sequence[tuple[float, float]], ranks: int, hosts: int) -> Link:
    """The link between neighbours of a ring that would take these times: see `ring_link`."""
    base, slope = latency_and_slope([size for size, _ in times], [seconds for _, seconds in times])
    return ring_link(ranks, hosts, base, slope)


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given. CPUs are never behind."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def _timed(
    comm: Communicator, start: Start, device: torch.device, size: int, repeats: int, prefix: str = ""
) -> list[float]:
    """Seconds of each of some sums, the mean over ranks. *Collective.*"""
    message = torch.ones(size // FLOAT32_BYTES, device=device)
    taken = torch.zeros(repeats, dtype=torch.float64)
    for number in range(repeats):
        begun = time.perf_counter()
        start(message, f"{prefix}bench {size}").wait()
        wait_for(device)
        taken[number] = time.perf_counter() - begun
    summed = comm.allreduce_sum(taken.to(device), f"bench times {repeats}").wait()
    means: list[float] = (summed / comm.size).tolist()
    return means
