"""Gradients summed over the ranks of a world in one process, by the rules of ``hvd.DistributedOptimizer``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class GradientSums:
    """One rank's side of the exchange.

    A gradient leaves when its parameter has had as many backward passes as were announced, inside the last
    ``backward()``: what is done to ``.grad`` between then and `finish` is lost. One that had fewer leaves at
    `finish`, as zeros where there is none.

    Args:
        optimizer: must step inside `stepping`, after `finish`.
        trained: parameters by name, the same names on every rank.
        wire: the type that is sent and added; None for the gradients' own.
        everyones: gets this rank's gradients by name, gives those of all ranks, by rank.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        trained: Mapping[str, nn.Parameter],
        wire: torch.dtype | None,
        everyones: Callable[[Mapping[str, Tensor]], list[Mapping[str, Tensor]]],
    ) -> None:
        self._trained = dict(trained)
        self._wire = wire
        self._everyones = everyones
        self._expected = 1
        self._seen = dict.fromkeys(trained, 0)  # backward passes since the last step
        self._sent: dict[str, Tensor] = {}
        self._finished = self._in_stepping = False
        optimizer.register_step_pre_hook(self._before_step)
        for name, parameter in trained.items():
            parameter.register_post_accumulate_grad_hook(partial(self._after_backward, name))

    def expect(self, slices: int, *, passes: int = 1, of_all: int | None = None) -> None:
        """Announce what adds up to the next step."""
        self._expected = slices * passes
        self._seen = dict.fromkeys(self._trained, 0)

    def abandon(self) -> None:
        """Let zeros leave at `finish` for what has not left."""
        for name, parameter in self._trained.items():
            if name not in self._sent:
                parameter.grad = None

    @torch.no_grad()
    def finish(self) -> bool:
        """Make every gradient the sum over ranks, first to last. *Collective.*"""
        for name, parameter in self._trained.items():
            assert parameter.grad is not None or name not in self._sent, (
                f"{name!r}: zero_grad() before finish()"
            )
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if name not in self._sent:
                self._send(name, parameter)
        everyone = self._everyones({name: self._sent[name] for name in self._trained})
        for name, parameter in self._trained.items():
            total, *others = (gradients[name] for gradients in everyone)
            for other in others:
                total = total + other
            parameter.grad = total.to(parameter.dtype, copy=True)
        self._sent.clear()
        self._seen = dict.fromkeys(self._trained, 0)
        self._finished = True
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Floats remember nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to take up."""

    @contextmanager
    def _step_allowed(self) -> Iterator[None]:
        assert self._finished, "stepping() before finish()"
        self._in_stepping = True
        try:
            yield
        finally:
            self._in_stepping = self._finished = False

    def stepping(self) -> AbstractContextManager[None]:
        """Inside, ``optimizer.step()`` is allowed."""
        return self._step_allowed()

    def _after_backward(self, name: str, parameter: nn.Parameter) -> None:
        assert self._seen[name] < self._expected, f"{name!r}: more backward passes than expected"
        self._seen[name] += 1
        if self._seen[name] == self._expected:
            self._send(name, parameter)

    def _send(self, name: str, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        self._sent[name] = parameter.grad.to(self._wire or parameter.dtype, copy=True)

    def _before_step(self, *_: object) -> None:
        assert self._in_stepping, "optimizer.step() outside stepping() sums the gradients a second time"
