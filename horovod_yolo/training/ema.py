"""Exponential moving average of the weights: what is validated, saved and used."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from horovod_yolo.models.detector import Detector
from horovod_yolo.training.freezing import held


class Ema:
    """Averaged copy of a model; the average starts fast and slows down.

    The decay after ``n`` updates is ``decay * (1 - exp(-n / tau))``, YOLOv5's constants.
    """

    def __init__(self, model: Detector, decay: float = 0.9999, tau: float = 2000.0) -> None:
        self._held = held(model)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._updates = torch.zeros((), dtype=torch.int64, device=next(model.parameters()).device)
        self._decay = decay
        self._tau = tau
        self._follow(model)

    @property
    def updates(self) -> int:
        """How many there were. A device is waited for."""
        return int(self._updates)

    @updates.setter
    def updates(self, count: int) -> None:
        self._updates.fill_(count)

    def _follow(self, model: Detector) -> None:
        """Keep which of its tensors is averaged where: to look for them takes as long as to average them.

        They are the same ones for good. What loads weights writes into them.
        """
        current, self._followed = model.state_dict(), model
        pairs = [(t, current[name]) for name, t in self.model.state_dict().items() if name not in self._held]
        self._averaged = _columns([pair for pair in pairs if pair[0].is_floating_point()])
        self._counted = _columns([pair for pair in pairs if not pair[0].is_floating_point()])

    @torch.no_grad()
    def update(self, model: Detector, made: bool | Tensor = True) -> None:
        """Take in the weights after one optimizer step; integer buffers are copied.

        What training does not change is left alone: averaging -0.0 with itself would make it 0.0.

        Args:
            model: as it is now.
            made: whether there was a step; () where only the device knows.
        """
        if made is False:
            return
        self._updates += made
        if model is not self._followed:
            self._follow(model)
        averaged, fresh = self._averaged
        counted, counts = self._counted
        if isinstance(made, Tensor) or self._updates.device.type != "cpu":  # the host does not know the count
            made = torch.ones_like(self._updates) * made
            kept = self._decay * (1 - torch.exp(-self._updates.double() / self._tau))
            _move(averaged, fresh, ((1 - kept) * made).to(averaged[0].dtype))
            _move(counted, counts, made)
            return
        decay = self._decay * (1 - math.exp(-self.updates / self._tau))
        torch._foreach_lerp_(averaged, fresh, 1 - decay)
        for tensor, count in zip(counted, counts, strict=True):
            tensor.copy_(count)


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [one for one, _ in pairs], [other for _, other in pairs]


def _move(tensors: list[Tensor], towards: list[Tensor], share: Tensor) -> None:
    """By a share of the way that only their device knows."""
    if tensors:
        ways = torch._foreach_sub(towards, tensors)
        torch._foreach_mul_(ways, share)
        torch._foreach_add_(tensors, ways)
