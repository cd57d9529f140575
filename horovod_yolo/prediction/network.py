"""A model of ours as what maps inputs to detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Decoded, Detections
from horovod_yolo.data.letterbox import GREY
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.suppression import Thresholds, non_max_suppression

VIEWS = (
    (1.0, False),
    (0.83, True),
    (0.67, False),
)  # of an image: its scale, whether mirrored


@dataclass(frozen=True)
class Network:
    """A model with what counts as a detection.

    Attributes:
        model: on the device and with the weights that ``precision`` names.
        precision: of the forward pass.
        thresholds: what counts.
        classes: numbers of those that count; empty: all.
        augment: look at each image in three `VIEWS` and suppress what is found twice.
    """

    model: Detector
    precision: Precision
    thresholds: Thresholds
    classes: tuple[int, ...] = ()
    augment: bool = False

    def __post_init__(self) -> None:
        self.model.eval()

    @property
    def stride(self) -> int:
        """The model's coarsest, pixels."""
        return max(self.model.strides)

    @torch.no_grad()
    def __call__(self, inputs: NDArray[np.uint8]) -> list[Detections]:
        """(B, H, W, 3) RGB -> B results, best score first, boxes in pixels of the input."""
        images = self.precision.inputs(torch.from_numpy(inputs).permute(0, 3, 1, 2))
        head = self.model.head
        if not self.augment:
            return head.suppress(wanted(self._decoded(images), self.classes), self.thresholds)
        views = [self._view(images, *view) for view in VIEWS]
        decoded = Decoded(*(torch.cat(parts, dim=1) for parts in zip(*views, strict=True)))
        return non_max_suppression(wanted(decoded, self.classes), self.thresholds)

    def _decoded(self, images: Tensor) -> Decoded:
        with self.precision.autocast():
            predictions = self.model(images)
        return self.model.head.decode(predictions)

    def _view(self, images: Tensor, scale: float, mirrored: bool) -> Decoded:
        """What is seen in (B, 3, H, W) images when scaled and mirrored, as boxes in the images' pixels."""
        height, width = images.shape[2:]
        rows, columns = round(height * scale), round(width * scale)
        if scale != 1:
            images = functional.interpolate(images, (rows, columns), mode="bilinear", align_corners=False)
            below, right = (math.ceil(side / self.stride) * self.stride - side for side in (rows, columns))
            images = functional.pad(images, (0, right, 0, below), value=GREY / 255)
        found = self._decoded(images.flip(3) if mirrored else images)
        left, top, right_, bottom = found.boxes_xyxy.unbind(-1)
        if mirrored:
            left, right_ = images.shape[3] - right_, images.shape[3] - left
        gain_x, gain_y = columns / width, rows / height
        boxes = torch.stack((left / gain_x, top / gain_y, right_ / gain_x, bottom / gain_y), dim=-1)
        return Decoded(boxes, found.scores)


def wanted(decoded: Decoded, classes: Sequence[int]) -> Decoded:
    """Without the boxes whose best class is none of ``classes``; with all where there are none."""
    if not classes:
        return decoded
    best = decoded.scores.argmax(dim=-1, keepdim=True)
    counts = torch.isin(best, torch.tensor(classes, device=best.device))
    return Decoded(decoded.boxes_xyxy, decoded.scores * counts)
