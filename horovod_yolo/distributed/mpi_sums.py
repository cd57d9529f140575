"""Small sums by MPI itself, beside Horovod, which has started it and ends it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from horovod_yolo.distributed.direct import (
    SECONDS_BETWEEN_LOOKS,
    Combine,
    Everyones,
    GoneError,
    Look,
    SmallSum,
)
from horovod_yolo.distributed.polling import pause

_SPINS = 200  # looks at once, as the others mostly come within microseconds
_SECONDS_BETWEEN_POLLS = 5e-5  # then, at first


class UnfitError(RuntimeError):
    """MPI cannot be used beside Horovod."""


class MpiSums:
    """`horovod_yolo.distributed.direct.DirectSums` over a communicator of MPI's of their own.

    Args:
        comm: of all ranks; nobody else uses it.
        operations: MPI's for each way to combine.
        look: called about every second of a wait with its seconds so far, and for whom it is; may raise.
    """

    def __init__(self, comm: Any, operations: dict[Combine, Any], look: Look) -> None:
        self._comm, self._operations, self._look = comm, operations, look

    @classmethod
    def beside_horovod(
        cls, rank: int, size: int, everyones: Everyones, look: Look, group: Any = None
    ) -> MpiSums:
        """Of the ranks that Horovod's MPI connects. *Collective.*

        Args:
            rank: this one, as Horovod numbers it.
            size: number of ranks, as Horovod counts.
            everyones: exchanges an object between all ranks.
            look: see the class.
            group: MPI's communicator of these ranks, where they are not all.

        Raises:
            UnfitError: mpi4py is not there, or has another MPI than Horovod, or threads are too many for it;
                on all ranks.
        """
        mpi, problem = None, None
        try:
            mpi = _running_mpi(rank, size, group)
        except UnfitError as error:
            problem = str(error)
        if problems := [found for found in everyones(problem) if found]:
            raise UnfitError(problems[0])
        assert mpi is not None
        comm = (group or mpi.COMM_WORLD).Dup()
        comm.Set_errhandler(mpi.ERRORS_RETURN)
        return cls(comm, {torch.add: mpi.SUM, torch.maximum: mpi.MAX}, look)

    def start(self, tensor: Tensor, name: str, combine: Combine) -> SmallSum:
        """Start combining a tensor over ranks. *Collective.*"""
        own = tensor.detach().clone(memory_format=torch.contiguous_format)
        result = torch.empty_like(own)
        request = self._comm.Iallreduce(own.numpy(), result.numpy(), self._operations[combine])
        return _Request(request, own, result, self._look)

    def settle(self) -> None:
        """Nothing: MPI brings them on in any order."""

    def close(self) -> None:
        """Nothing: Horovod ends MPI, and with it the communicator."""


class _Request:
    def __init__(self, request: Any, own: Tensor, result: Tensor, look: Look) -> None:
        self._request, self._result, self._look = request, result, look
        self._own = own  # MPI reads it until the end

    def wait(self) -> Tensor:
        """Poll, ever more rarely: MPI's own wait takes the core from the rank that it waits for."""
        begun = looked = time.monotonic()
        spins = 0
        while not self._done():
            spins += 1
            if spins <= _SPINS:
                continue
            now = time.monotonic()
            if now - looked > SECONDS_BETWEEN_LOOKS:
                looked = now
                self._look(now - begun, "another rank")
            pause(now - begun, _SECONDS_BETWEEN_POLLS)
        return self._result

    def _done(self) -> bool:
        try:
            return bool(self._request.Test())
        except RuntimeError as error:  # MPI.Exception is one
            raise GoneError(str(error)) from error


def _running_mpi(rank: int, size: int, group: Any) -> Any:
    """MPI as Horovod has started it, or for groups of ranks this program.

    Raises:
        UnfitError: says why not.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False  # Horovod does both
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UnfitError(f"mpi4py does not load ({error})") from None
    if not MPI.Is_initialized():
        raise UnfitError("mpi4py has another MPI library than Horovod")
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise UnfitError("this MPI was not started for several threads (MPI_THREAD_MULTIPLE)")
    world = group or MPI.COMM_WORLD
    if (world.rank, world.size) != (rank, size):
        raise UnfitError(f"MPI counts this as rank {world.rank} of {world.size}, Horovod as {rank} of {size}")
    return MPI
