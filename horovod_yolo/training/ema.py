"""Exponential moving average of the weights: what is validated, saved and used."""

from __future__ import annotations

import copy
import math

import torch

from horovod_yolo.models.detector import Detector
from horovod_yolo.training.freezing import held


class Ema:
    """Averaged copy of a model; the average starts fast and slows down.

    The decay after ``n`` updates is ``decay * (1 - exp(-n / tau))``, YOLOv5's constants.
    """

    def __init__(self, model: Detector, decay: float = 0.9999, tau: float = 2000.0) -> None:
        self._held = held(model)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay
        self._tau = tau

    @torch.no_grad()
    def update(self, model: Detector) -> None:
        """Take in the weights after one optimizer step; integer buffers are copied.

        What training does not change is left alone: averaging -0.0 with itself would make it 0.0.
        """
        self.updates += 1
        decay = self._decay * (1 - math.exp(-self.updates / self._tau))
        current = model.state_dict()
        averaged, fresh = [], []
        for name, tensor in self.model.state_dict().items():
            if name in self._held:
                continue
            if tensor.dtype.is_floating_point:
                averaged.append(tensor)
                fresh.append(current[name].detach())
            else:
                tensor.copy_(current[name])
        torch._foreach_lerp_(averaged, fresh, 1 - decay)
