"""Gradients summed as integers: the sum over the slices is the same to the bit whoever adds them up.

The gradient of a slice is multiplied by a power of two, one for each tensor, and rounded. Integers are added
without rounding, in any order, so it does not matter which rank has which slice, nor how the sum travels.

The power of two is chosen before the gradient is known: from the largest values of the steps before. Each
slice's own largest value is looked at, and their maximum over all slices tells all ranks alike whether one
did not fit: then the step is made again with what is known by then. Infinite and NaN go the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from horovod_yolo.distributed.communicator import Communicator, Pending
from horovod_yolo.distributed.gradient_groups import grouped

ROOM = 4  # bits above the largest value expected: it may grow by as much until a step is made again
FADES = 0.8  # left of an expected value by a step that does not reach it: a bit is won in three steps
LEAST_EXPECTED = 2.0**-90  # of a tensor that never had a gradient; keeps powers of two in float32's range
INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


class ExactExchange:
    """A `GradientExchange` by integers of as many bits as the gradients have.

    Args:
        named_parameters: all that get gradients, the same on every rank.
        comm: the ranks.
        group_mb: gradients travel in groups of about this size.
        scale: gives the power of two that gradients are multiplied by in the next step.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        comm: Communicator,
        *,
        group_mb: float,
        scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._current_scale = scale
        self._parameters = [parameter for _, parameter in named_parameters]
        self._comm = comm
        number = {parameter: k for k, parameter in enumerate(self._parameters)}
        self._groups = [
            _Group([number[parameter] for parameter in group], group)
            for group in grouped(self._parameters, group_mb * 2**20)
        ]
        self._place_of = {k: (group, place) for group in self._groups for k, place in group.places()}
        for k, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(self._note, k)
            )
        device = self._parameters[0].device
        self._expected = torch.zeros(len(self._parameters), dtype=torch.float64, device=device)
        self._largest = torch.zeros_like(self._expected)
        self.expect(1)

    def expect(self, slices: int, *, passes: int = 1, of_all: int | None = None) -> None:
        """See `GradientExchange`."""
        self._slices, self._passes, self._scale, self._sent = slices, passes, self._current_scale(), 0
        self._brought = [0] * len(self._parameters)
        self._extremes: list[Tensor] = []  # of each gradient of a slice the smallest and the largest value
        self._of: list[int] = []  # whose they are
        double = self._parameters[0].dtype == torch.float64
        self._bits = (61 if double else 30) - math.ceil(math.log2(of_all or slices))
        _, exponents = torch.frexp(self._expected.clamp(min=LEAST_EXPECTED))
        self._exponents = (self._bits - ROOM - exponents).clamp(max=126)
        unscaled = torch.full_like(self._expected, 1 / self._scale)
        self._factors = torch.ldexp(unscaled, self._exponents).tolist()
        for group in self._groups:
            group.begin()

    def _note(self, k: int, parameter: nn.Parameter) -> None:
        """Called by each backward pass for each parameter."""
        self._brought[k] += 1
        if self._brought[k] % self._passes:
            return
        self._take(k, parameter)
        if self._brought[k] == self._passes * self._slices:
            self._place_of[k][0].missing -= 1
            while self._sent < len(self._groups) and not self._groups[self._sent].missing:
                self._send()

    @torch.no_grad()
    def _take(self, k: int, parameter: nn.Parameter) -> None:
        """Add the gradient of a slice, which is whole."""
        gradient = parameter.grad
        assert gradient is not None
        self._extremes += torch.aminmax(gradient)  # ten times as fast as the infinity norm
        self._of.append(k)
        _, place = self._place_of[k]
        whole = gradient.mul_(self._factors[k]).round_()
        if self._brought[k] == self._passes:
            place.copy_(whole)
        else:
            place.add_(whole.to(place.dtype))
        parameter.grad = None

    def _send(self) -> None:
        group = self._groups[self._sent]
        group.coming = self._comm.messages.allreduce_sum(group.message, f"gradients.{self._sent}")
        self._sent += 1

    def abandon(self) -> None:
        """See `GradientExchange`."""
        while self._sent < len(self._groups):  # where the others do it, before all that follows
            self._groups[self._sent].message.zero_()
            self._send()
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def finish(self) -> bool:
        """See `GradientExchange`."""
        for k, place in chain.from_iterable(group.places() for group in self._groups[self._sent :]):
            if not self._brought[k]:
                place.zero_()
        while self._sent < len(self._groups):
            self._send()
        self._largest = self._comm.allreduce_max(self._largest_here(), "gradients.largest").wait()
        for group in self._groups:
            self._receive(group)
        if self._largest.isinf().any():
            self._parameters[0].grad = torch.full_like(self._parameters[0], math.inf)
            return True
        fits = torch.ldexp(self._largest, self._exponents) <= 2.0**self._bits
        if fits.all():
            return True
        self._expected = torch.maximum(self._expected, self._largest)
        return False

    def _largest_here(self) -> Tensor:
        """(parameters,) of each the largest absolute value in a slice of this rank; infinite for NaN."""
        largest = torch.zeros_like(self._expected)
        if self._of:
            pairs = torch.stack(self._extremes).view(-1, 2)
            found = pairs.double().abs().nan_to_num(nan=math.inf, posinf=math.inf).amax(dim=1)
            numbers = torch.tensor(self._of, device=largest.device)
            largest.scatter_reduce_(0, numbers, found, "amax")
        return largest / self._scale

    def _receive(self, group: _Group) -> None:
        """Give the parameters what came back."""
        assert group.coming is not None
        total = group.coming.wait()
        group.coming = None
        for (k, place), parameter in zip(group.places(total), group.parameters, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(place).div_(self._factors[k])

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


class _Group:
    """Gradients that travel as one message."""

    def __init__(self, numbers: Sequence[int], parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self._numbers = numbers
        first = parameters[0]
        count = sum(parameter.numel() for parameter in parameters)
        self.message = torch.zeros(count, dtype=INTEGER[first.dtype], device=first.device)
        self.missing = 0  # gradients that are not whole
        self.coming: Pending | None = None

    def begin(self) -> None:
        """A step begins."""
        self.missing, self.coming = len(self.parameters), None

    def places(self, message: Tensor | None = None) -> list[tuple[int, Tensor]]:
        """Each parameter's number and its part of a message, in its own layout in memory."""
        message = self.message if message is None else message
        pieces = torch.split(message, [parameter.numel() for parameter in self.parameters])
        return [
            (k, piece.as_strided(parameter.size(), parameter.stride(), piece.storage_offset()))
            for k, piece, parameter in zip(self._numbers, pieces, self.parameters, strict=True)
        ]
