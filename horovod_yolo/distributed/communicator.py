"""What training needs from the ranks' network, whoever provides it.

Every call marked *collective* must be made by all ranks, in the same order. After an exception no
further collective call is made: the others would wait for this rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

T = TypeVar("T")
# How names of batch norm's sums begin. There are many in a step, each after a sum of another name in it.
OF_BATCH_NORM = "bn."


class Pending(Protocol):
    """An allreduce on its way."""

    def wait(self) -> Tensor:
        """The result, when it is there."""


class GradientExchange(Protocol):
    """The sum of the ranks' gradients, sent while ``backward()`` still runs."""

    def expect(self, slices: int, *, passes: int = 1, of_all: int | None = None) -> None:
        """Announce what adds up to the next step.

        Args:
            slices: of this rank, in all batches of the step.
            passes: backward passes of each slice.
            of_all: slices of all ranks; by default this one has all.
        """

    def abandon(self) -> None:
        """Leave off before the last backward pass is over: zeros go for what has not been sent.

        The other ranks send and wait as ever; `finish` is due here too, and what it gives is of no use.
        """

    def finish(self) -> bool:
        """Wait until every gradient is the sum over ranks. *Collective.*

        False, on all ranks alike, where a gradient was too large to be added up exactly: do the step again.
        """

    def stepping(self) -> AbstractContextManager[None]:
        """Inside, ``optimizer.step()`` does not exchange gradients a second time."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the sums of the next steps depend on, the same on all ranks."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""


class Sums(Protocol):
    """Sums over the ranks, and nothing else."""

    def allreduce_sum(self, tensor: Tensor, name: str) -> Pending:
        """Start summing a tensor over ranks, as `Communicator.allreduce_sum`. *Collective.*"""


class Messages(Protocol):
    """Sums over the ranks of what gradients travel in."""

    def sum_in_place(self, tensor: Tensor, name: str) -> Pending:
        """Start summing a tensor over ranks; the sum takes its place. *Collective.*

        It leaves and arrives as gradients do, whatever its size. Other small sums may take a shorter way.
        """


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
    def one_rank_a_gpu(self) -> bool:
        """Whether two ranks cannot compute on one GPU, as over NCCL."""

    @property
    def wait_s(self) -> float:
        """Seconds spent waiting for other ranks since the start."""

    @property
    def wire_types(self) -> tuple[torch.dtype, ...]:
        """Shorter types in which gradients can travel."""

    @property
    def messages(self) -> Messages:
        """Sums of gradients."""

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
        wire: torch.dtype | None,
        group_mb: float,
    ) -> tuple[Optimizer, GradientExchange]:
        """Wrap an optimizer so that gradients are summed over ranks. *Collective.*

        Args:
            optimizer: of the parameters.
            named_parameters: all that get gradients, the same on every rank.
            wire: the type in which gradients travel and are added, one of `wire_types`; None for their own.
            group_mb: gradients travel in groups of at most about this size.
        """

    def close(self) -> None:
        """Leave the job in order."""
