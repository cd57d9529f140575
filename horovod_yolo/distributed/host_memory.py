"""Memory that all ranks of one host see: what they add up there need not be sent."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from horovod_yolo.distributed.communicator import Communicator

MOST_BYTES = 1 << 30  # of all ranks together


class HostMemory:
    """Two halves of each rank.

    A rank fills one of its own, and then makes any sum over the ranks: when that is there all have filled
    theirs, and each rank may read them. Meanwhile the next step may begin, in the other half. Who comes back
    to the first one has been through that step's sum, to which no rank came before it had read.

    ``halves`` are those of the ranks: ``halves[half][rank]`` is (N,).
    """

    def __init__(self, maps: Sequence[mmap.mmap], count: int, dtype: torch.dtype) -> None:
        size = count * dtype.itemsize
        self.halves: tuple[list[Tensor], ...] = tuple(
            [torch.frombuffer(one, dtype=dtype, count=count, offset=half * size) for one in maps]
            for half in (0, 1)
        )

    @classmethod
    def among(cls, comm: Communicator, count: int, dtype: torch.dtype) -> HostMemory | None:
        """Memory for so many numbers; None where the ranks have none together. *Collective.*"""
        size = 2 * count * dtype.itemsize
        if comm.local_size < comm.size or comm.size == 1 or comm.size * size > MOST_BYTES:
            return None
        own = _allocated(size)
        place = None if own is None else (f"/proc/{os.getpid()}/fd/{own}", os.fstat(own).st_ino)
        told = comm.allgather_object(place)
        maps = [] if None in told else [_mapped(*of_rank, size) for of_rank in told if of_rank is not None]
        everyone_has = all(comm.allgather_object(bool(maps) and None not in maps))
        if own is not None:
            os.close(own)
        return cls([one for one in maps if one is not None], count, dtype) if everyone_has else None


class HostSum:
    """A sum of what lies in the memory of the ranks, for when they all have filled theirs."""

    def __init__(self, parts: Sequence[Tensor], total: Tensor) -> None:
        self._parts, self._total = parts, total

    def wait(self) -> Tensor:
        """The total."""
        first, second, *others = self._parts
        torch.add(first, second, out=self._total)
        for other in others:
            self._total.add_(other)
        return self._total


def _allocated(size: int) -> int | None:
    """A descriptor of memory without a name; None where there is none, or no such thing."""
    try:
        descriptor = os.memfd_create("gradients", os.MFD_CLOEXEC)
    except OSError:
        return None
    try:
        os.posix_fallocate(descriptor, 0, size)  # what is not there must not be missed while it is used
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _mapped(path: str, inode: int, size: int) -> mmap.mmap | None:
    """The memory of a rank; None where the path does not lead to it, as between containers."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if (found.st_ino, found.st_size) != (inode, size):
            return None
        return mmap.mmap(descriptor, size)
    except OSError:
        return None
    finally:
        os.close(descriptor)
