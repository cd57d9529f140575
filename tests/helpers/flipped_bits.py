"""A rank that computes wrongly: one bit of one gradient is flipped, as by a bad memory or a bad processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.assembly import build
from horovod_yolo.training.step import Stepper


@contextmanager
def flipped_bit(
    rank: int, step: int, name: str, *, nth: int = 0, bit: int = 22, always: bool = False
) -> Iterator[None]:
    """Inside, a rank flips a bit of the first number of a parameter's gradient.

    Args:
        rank: that does.
        step: in which, from 1, of those that are made inside.
        name: of the parameter.
        nth: of the rank's slices in that step.
        bit: of the float32, from the least significant one.
        always: from that step on in every gradient of the parameter, also in those that are computed again.
    """
    whole = build.build_stepper

    def with_fault(config: Any, model: nn.Module, criterion: Any, comm: Any, *rest: Any) -> Stepper:
        if comm.rank != rank:
            return whole(config, model, criterion, comm, *rest)  # type: ignore[arg-type]
        fault = _Fault(step, nth, bit)
        # before the exchange of gradients has its hooks
        parameter = dict(model.named_parameters())[name]
        if always:
            parameter.register_hook(fault.always)  # type: ignore[no-untyped-call]
        else:
            parameter.register_post_accumulate_grad_hook(fault)  # type: ignore[no-untyped-call]
        stepper = whole(config, model, criterion, comm, *rest)  # type: ignore[arg-type]
        made = stepper.step

        def counted(*arguments: Any) -> Any:
            fault.begin()
            return made(*arguments)

        stepper.step = counted  # type: ignore[method-assign,assignment]
        return stepper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_stepper", with_fault)
        yield


class _Fault:
    """Knows the step, and how many gradients of the parameter there were in it."""

    def __init__(self, step: int, nth: int, bit: int) -> None:
        self._left, self._nth, self._bit = step, nth, bit
        self._seen = 0

    def begin(self) -> None:
        self._left -= 1
        self._seen = 0

    def __call__(self, parameter: nn.Parameter) -> None:
        if self._left == 0 and self._seen == self._nth:
            assert parameter.grad is not None
            self._flip(parameter.grad)
        self._seen += 1

    def always(self, gradient: Tensor) -> Tensor:
        return self._flip(gradient.clone()) if self._left <= 0 else gradient

    def _flip(self, gradient: Tensor) -> Tensor:
        assert gradient.dtype == torch.float32
        gradient.view(torch.int32)[(0,) * gradient.dim()] ^= 1 << self._bit
        return gradient
