"""A detector of a thousand parameters and batches for it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from horovod_yolo.core.types import Batch, Predictions, Targets
from horovod_yolo.losses.anchor_based import AnchorLoss, LossWeights
from horovod_yolo.models.head import AnchorHead, Detector

CLASSES = 3
STRIDES = (8, 16)
ANCHORS_PX = (((8, 8), (12, 20)), ((20, 14), (30, 30)))


class TinyDetector(nn.Module):
    """Two levels; with batch norm, so that training and evaluation differ."""

    name = "tiny"
    num_classes = CLASSES
    strides = STRIDES

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 8, stride=8, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 6, 2, stride=2)
        self.head = AnchorHead((6, 6), CLASSES, ANCHORS_PX, STRIDES, layer=1)

    @property
    def anchors_px(self) -> Tensor:
        return self.head.anchors * torch.tensor(STRIDES).view(-1, 1, 1)

    def forward(self, images: Tensor) -> Predictions:
        fine = torch.relu(self.norm(self.stem(images)))
        predictions: Predictions = self.head([fine, self.down(fine)])
        return predictions


def tiny_detector(dtype: torch.dtype = torch.float64) -> Detector:
    """Always the same weights."""
    torch.manual_seed(3)
    return cast(Detector, TinyDetector().to(dtype))


def tiny_loss() -> AnchorLoss:
    return AnchorLoss(LossWeights(), CLASSES, STRIDES)


def tiny_batch(images: int, seed: int, size: tuple[int, int] = (32, 48)) -> Batch:
    """Random pixels, two boxes an image."""
    rng = torch.Generator().manual_seed(seed)
    boxes = torch.rand(2 * images, 4, generator=rng) * 0.4 + 0.2
    return Batch(
        torch.randint(256, (images, 3, *size), generator=rng, dtype=torch.uint8),
        Targets(
            torch.arange(images).repeat_interleave(2),
            torch.randint(CLASSES, (2 * images,), generator=rng),
            boxes,
        ),
        torch.arange(images),
        [],
    )
