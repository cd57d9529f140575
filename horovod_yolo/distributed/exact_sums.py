"""Gradients summed as integers: the sum over the slices is the same to the bit whoever adds them up.

The gradient of a slice is multiplied by a power of two, one for each tensor, and rounded. Integers are added
without rounding, in any order, so it does not matter which rank has which slice, nor how the sum travels.

The power of two is chosen before the gradient is known: from the largest values of the steps before. Each
slice's own largest value is looked at, and their maximum over all slices tells all ranks alike whether one
did not fit: then the step is made again with what is known by then. Infinite and NaN go the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from horovod_yolo.distributed.communicator import Communicator, Pending
from horovod_yolo.distributed.gradient_groups import Group, GroupedExchange
from horovod_yolo.distributed.host_memory import HostMemory, HostSum

ROOM = 4  # bits above the largest value expected: it may grow by as much until a step is made again
FADES = 0.8  # left of an expected value by a step that does not reach it: a bit is won in three steps
LEAST_EXPECTED = 2.0**-90  # of a tensor that never had a gradient; keeps powers of two in float32's range
INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


class ExactExchange(GroupedExchange):
    """A `GradientExchange` by integers of as many bits as the gradients have.

    Args:
        parameters: all that get gradients, the same on every rank.
        comm: the ranks.
        group_mb: gradients travel in groups of at most about this size.
        scale: gives the power of two that gradients are multiplied by in the next step.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        comm: Communicator,
        *,
        group_mb: float,
        scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        dtype = parameters[0].dtype
        super().__init__(parameters, comm.messages, group_mb, INTEGER[dtype])
        self._comm = comm
        self._current_scale = scale
        self._parameters = parameters
        self._keeps = False
        self._kept: list[tuple[Group, list[Tensor]]] = []  # gradients of slices, not multiplied yet
        self._multipliers: list[Tensor] = []  # of those that come, one for each parameter
        self._bits_of_all = 61 if dtype == torch.float64 else 30
        device = parameters[0].device
        self._expected = torch.zeros(len(parameters), dtype=torch.float64, device=device)
        self._largest = torch.zeros_like(self._expected)
        # The integers become floats where they are.
        self._gradients = {group: group.pieces(group.message.view(dtype)) for group in self._groups}
        self._share_memory(device)
        self.expect(1)

    def _share_memory(self, device: torch.device) -> None:
        """Where ranks of one host put their integers, instead of sending them: (half, rank, group)."""
        self._parts: list[list[tuple[Tensor, ...]]] = []
        counts = [len(group.message) for group in self._groups]
        dtype = self._groups[0].message.dtype
        memory = HostMemory.among(self._comm, sum(counts), dtype) if device.type == "cpu" else None
        if memory is not None:
            self._parts = [[torch.split(of_rank, counts) for of_rank in half] for half in memory.halves]
        self._places = [
            [group.pieces(part) for group, part in zip(self._groups, half[self._comm.rank], strict=True)]
            for half in self._parts
        ]
        self._half = 0
        self._turn()

    def _turn(self) -> None:
        """Fill the other half of the memory: ranks may still read this one."""
        if self._parts:
            self._half = 1 - self._half
            own, places = self._parts[self._half][self._comm.rank], self._places[self._half]
            for group, part, of_group in zip(self._groups, own, places, strict=True):
                group.fill_in(part, of_group)

    def _start(self, number: int) -> Pending:
        if not self._parts:
            return super()._start(number)
        parts = [of_rank[number] for of_rank in self._parts[self._half]]
        return HostSum(parts, self._groups[number].message)

    def expect(self, slices: int, *, passes: int = 1, of_all: int | None = None) -> None:
        """See `GradientExchange`."""
        self._begin(slices, passes)
        self._forget_kept()
        self._scale = self._current_scale()
        self._largest.zero_()
        self._bits = self._bits_of_all - math.ceil(math.log2(of_all or slices))
        _, exponents = torch.frexp(self._expected.clamp(min=LEAST_EXPECTED))
        self._exponents = (self._bits - ROOM - exponents).clamp(max=126)
        unscaled = torch.full_like(self._expected, 1 / self._scale)
        self._factors = torch.ldexp(unscaled, self._exponents).tolist()

    def keep(self) -> None:
        """Keep the gradients of slices that come from now on until `multiply`."""
        self._keeps = True

    @torch.no_grad()
    def multiply(self, multipliers: list[Tensor]) -> None:
        """Multiply the kept gradients, and until the next `keep` or step those that come.

        Args:
            multipliers: () for each of the parameters.
        """
        self._keeps, self._multipliers = False, multipliers
        for group, gradients in self._kept:
            self._fill(group, gradients)
        self._kept.clear()

    def abandon(self) -> None:
        """See `GradientExchange`."""
        self._forget_kept()
        super().abandon()

    def _forget_kept(self) -> None:
        self._keeps, self._multipliers = False, []
        self._kept.clear()

    def _fill(self, group: Group, gradients: list[Tensor]) -> None:
        if self._keeps:
            self._kept.append((group, gradients))
            return
        if self._multipliers:
            torch._foreach_mul_(gradients, self._multipliers[group.numbers])
        # Not by a norm: on CPUs it takes fifty times as long.
        ends = torch.stack([end for gradient in gradients for end in torch.aminmax(gradient)])
        largest = ends.view(-1, 2).abs().amax(1).double()
        of_group = self._largest[group.numbers]
        torch.maximum(of_group, largest, out=of_group)
        torch._foreach_mul_(gradients, self._factors[group.numbers])
        torch._foreach_round_(gradients)
        if group.filled:
            torch._foreach_add_(group.places, [whole.to(group.message.dtype) for whole in gradients])
        else:
            torch._foreach_copy_(group.places, gradients)
        group.filled = True

    @torch.no_grad()
    def finish(self) -> bool:
        """See `GradientExchange`."""
        self._send_rest()
        largest = self._largest.nan_to_num(nan=math.inf, posinf=math.inf) / self._scale
        # When the maximum is there, all ranks have filled their memory, and read the half of the step before.
        self._largest = self._comm.allreduce_max(largest, "gradients.largest").wait()
        self._receive()
        self._turn()
        if self._largest.isinf().any():
            self._parameters[0].grad = torch.full_like(self._parameters[0], math.inf)
            return True
        fits = torch.ldexp(self._largest, self._exponents) <= 2.0**self._bits
        if fits.all():
            return True
        self._expected = torch.maximum(self._expected, self._largest)
        return False

    def _give(self, group: Group) -> None:
        gradients = self._gradients[group]
        group.message.view(gradients[0].dtype).copy_(group.message)
        torch._foreach_div_(gradients, self._factors[group.numbers])
        for parameter, gradient in zip(group.parameters, gradients, strict=True):
            parameter.grad = gradient

    def stepping(self) -> AbstractContextManager[None]:
        """See `GradientExchange`. What is expected of the next step follows from this one."""
        if self._largest.isfinite().all():
            self._expected = torch.maximum(self._largest, self._expected * FADES)
        return nullcontext()

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step's bits depend on."""
        return {"largest_expected": self._expected.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self._expected = state["largest_expected"].to(self._expected)
