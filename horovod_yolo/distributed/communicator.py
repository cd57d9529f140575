"""What training needs from the ranks' network, whoever provides it.

Every call marked *collective* must be made by all ranks, in the same order. After an exception no
further collective call is made: the others would wait for this rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

T = TypeVar("T")


class Pending(Protocol):
    """An allreduce on its way."""

    def wait(self) -> Tensor:
        """The result, when it is there."""


class GradientExchange(Protocol):
    """The sum of the ranks' gradients, sent while ``backward()`` still runs."""

    def expect(self, backward_passes: int) -> None:
        """Announce how many backward passes add up to the next step."""

    def finish(self) -> None:
        """Wait until every gradient is the sum over ranks. *Collective.*"""

    def stepping(self) -> AbstractContextManager[None]:
        """Inside, ``optimizer.step()`` does not exchange gradients a second time."""


class Communicator(Protocol):
    """One rank's view of the job."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def size(self) -> int:
        """Number of processes."""

    @property
    def local_rank(self) -> int:
        """Number among the processes of this host."""

    @property
    def local_size(self) -> int:
        """Processes on this host."""

    @property
    def wait_s(self) -> float:
        """Seconds spent waiting for other ranks since the start."""

    @property
    def lost_errors(self) -> tuple[type[Exception], ...]:
        """What a collective call raises where another rank is gone."""

    def allreduce_sum(self, tensor: Tensor, name: str) -> Pending:
        """Start summing a tensor over ranks. *Collective.*

        Args:
            tensor: of floats or int64, the same shape and type on every rank; integers are summed exactly.
            name: of this sum, the same on every rank; no other call under way has it.
        """

    def allreduce_max(self, tensor: Tensor, name: str) -> Pending:
        """Start looking for the largest value at each place, as `allreduce_sum`. *Collective.*

        With NaN on any rank the result is undefined.
        """

    def allgather_object(self, value: T) -> list[T]:
        """Everyone's value, by rank. *Collective.*"""

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value. *Collective.*"""

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite everyone's tensors with rank 0's. *Collective.*"""

    def exchange_gradients(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        compress: bool,
        group_mb: float,
    ) -> tuple[Optimizer, GradientExchange]:
        """Wrap an optimizer so that gradients are summed over ranks. *Collective.*

        Args:
            optimizer: of the parameters.
            named_parameters: all that get gradients, the same on every rank.
            compress: send float16.
            group_mb: gradients travel in groups of about this size.
        """

    def close(self) -> None:
        """Leave the job in order."""


def agree(comm: Communicator, problem: str | None) -> str | None:
    """The first rank's problem, the same answer on every rank. *Collective.*

    Call it before any branch that a rank might take alone.
    """
    problems = comm.allgather_object(problem)
    bad = [rank for rank, text in enumerate(problems) if text is not None]
    if not bad:
        return None
    first = problems[bad[0]]
    if len(bad) == comm.size:
        return first
    return f"{first} (on rank{'s' if len(bad) > 1 else ''} {_ranges(bad)} of {comm.size})"


def _ranges(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8])
    return shown + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes: equal on two ranks only where every bit is."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_equal(comm: Communicator, tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise on all ranks unless the tensors are bitwise equal everywhere. *Collective.*"""
    sums = comm.allgather_object(checksum(tensors))
    different = [rank for rank, value in enumerate(sums) if value != sums[0]]
    if different:
        raise RuntimeError(f"{what} differ from rank 0's on ranks {_ranges(different)} after the broadcast")
