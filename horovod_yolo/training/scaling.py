"""The size that images have in the network, which `--multi-scale` varies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch.nn import functional as F

from horovod_yolo.core.types import Batch
from horovod_yolo.training.schedule import Window


def factors_of(seed: int, epoch: int, window: Window) -> list[float]:
    """Multi-scale factors of a window's batches: keyed, so that all ranks draw the same."""
    return [
        float(np.random.default_rng([seed, epoch, window.first_batch + k]).uniform(0.5, 1.5))
        for k in range(window.batches)
    ]


def scaled_size(batch: Batch, factor: float, stride: int) -> tuple[int, int]:
    """(H, W) of the images when they are scaled, to a multiple of ``stride``."""
    height, width = batch.images.shape[2:]
    if factor == 1:
        return height, width
    height, width = (max(round(side * factor / stride), 1) * stride for side in (height, width))
    return height, width


def scaled(batch: Batch, factor: float, stride: int) -> Batch:
    """The batch with its images scaled to a multiple of ``stride``; targets are relative and stay."""
    if factor == 1:
        return batch
    size = scaled_size(batch, factor, stride)
    images = batch.images.float()
    images = F.interpolate(images, size, mode="bilinear") if len(batch) else images.new_zeros((0, 3, *size))
    return replace(batch, images=images)
