"""A detector of a thousand parameters and batches for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from horovod_yolo.core.types import Batch, Targets
from horovod_yolo.families.anchor_based.head import AnchorHead
from horovod_yolo.losses.anchor_based import AnchorCriterion, LossWeights
from horovod_yolo.models.batch_norm import follows_batches
from horovod_yolo.models.blocks import Backbone, Neck
from horovod_yolo.models.detector import Detector

CLASSES = 3
STRIDES = (8, 16)
ANCHORS_PX = (((8, 8), (12, 20)), ((20, 14), (30, 30)))


class TinyBackbone(Backbone):
    """Two levels; with batch norm, so that training and evaluation differ."""

    published: ClassVar[Mapping[str, int]] = {"stem": 0, "norm": 1, "down": 2}

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 8, stride=8, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 6, 2, stride=2)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        fine = torch.relu(self.norm(self.stem(images)))
        return fine, self.down(fine)


class TinyNeck(Neck):
    """None."""

    published: ClassVar[Mapping[str, int]] = {}
    channels = (6, 6)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return maps


def tiny_detector(dtype: torch.dtype = torch.float64) -> Detector:
    """Always the same weights."""
    torch.manual_seed(3)
    return Detector("tiny", TinyBackbone(), TinyNeck(), tiny_head()).to(dtype)


def tiny_head() -> AnchorHead:
    return AnchorHead((6, 6), CLASSES, ANCHORS_PX, STRIDES, layer=3)


def tiny_criterion(dtype: torch.dtype = torch.float64) -> AnchorCriterion:
    """Of any tiny detector: their anchors are the same."""
    return AnchorCriterion(LossWeights(), tiny_head().to(dtype))


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


def running_statistics(model: nn.Module) -> Tensor:
    """(N,) what all batch norms of ``model`` track that follow batches."""
    norms = [module for module in model.modules() if follows_batches(module)]
    tracked = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    return torch.cat([buffer.clone() for buffer in tracked if buffer is not None])
