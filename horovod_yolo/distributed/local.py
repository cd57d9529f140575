"""One process: every collective has its answer at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_yolo.distributed.communicator import GradientExchange, Messages, Pending
from horovod_yolo.distributed.launchers.launcher import Launcher

T = TypeVar("T")


class Ready:
    """What one rank has is the result already."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def wait(self) -> Tensor:
        """The tensor itself."""
        return self._tensor


class NoExchange:
    """The gradients of one rank are the sum already."""

    def expect(self, slices: int, *, passes: int = 1, of_all: int | None = None) -> None:
        """Nothing to prepare."""

    def abandon(self) -> None:
        """Nothing to send."""

    def finish(self) -> bool:
        """Nothing to wait for."""
        return True

    def stepping(self) -> AbstractContextManager[None]:
        """Nothing to hold back."""
        return nullcontext()

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to take up."""


class LocalCommunicator:
    """A job of one rank."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    one_rank_a_gpu = False
    wait_s = 0.0
    lost_errors: tuple[type[Exception], ...] = ()
    wire_types: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)  # nothing travels

    @classmethod
    def join(cls, launched: Launcher) -> LocalCommunicator:
        """Nobody else to find."""
        return cls()

    @property
    def messages(self) -> Messages:
        """This rank's tensors themselves."""
        return self

    def sum_in_place(self, tensor: Tensor, name: str) -> Pending:
        """The tensor itself."""
        return Ready(tensor)

    def allreduce_sum(self, tensor: Tensor, name: str) -> Pending:
        """The tensor itself."""
        return Ready(tensor)

    def allreduce_max(self, tensor: Tensor, name: str) -> Pending:
        """The tensor itself."""
        return Ready(tensor)

    def allgather_object(self, value: T) -> list[T]:
        """A list of one."""
        return [value]

    def broadcast_object(self, value: T) -> T:
        """The value itself."""
        return value

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to do."""

    def exchange_gradients(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        wire: torch.dtype | None,
        group_mb: float,
    ) -> tuple[Optimizer, GradientExchange]:
        """The optimizer as it is."""
        return optimizer, NoExchange()

    def close(self) -> None:
        """Nothing to leave."""
