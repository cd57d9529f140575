"""From samples to the batch that goes to the network."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from horovod_yolo.core.boxes import xyxy_to_xywh
from horovod_yolo.core.types import Batch, LostImage, Targets
from horovod_yolo.data.augment import Sample


def collate(
    samples: Sequence[Sample],
    height: int,
    width: int,
    unmade: Sequence[LostImage] = (),
    images: Tensor | None = None,
) -> Batch:
    """Stack samples of one input size, in order.

    Args:
        samples: B of them; none at all gives a batch of images (0, 3, height, width).
        height: of the input, pixels.
        width: of the input, pixels.
        unmade: images whose samples could not be made.
        images: (B, 3, height, width) uint8, contiguous, where the images shall be; by default new memory.

    Raises:
        ValueError: an image of another size.
    """
    if images is None:
        images = torch.empty((len(samples), 3, height, width), dtype=torch.uint8)
    for row, sample in zip(images.numpy(), samples, strict=True):
        if sample.image.shape != (height, width, 3):
            raise ValueError(f"sample {sample.index} is {sample.image.shape}, not {(height, width, 3)}")
        cv2.split(sample.image, list(row))  # into the batch's own planes
    return Batch(
        images,
        _targets(samples, height, width),
        torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        tuple(sample.letterbox for sample in samples),
        (*unmade, *(image for sample in samples for image in sample.lost)),
        sum(sample.replaced for sample in samples),
    )


def _targets(samples: Sequence[Sample], height: int, width: int) -> Targets:
    counts = [len(sample.classes) for sample in samples]
    classes = np.concatenate([np.empty(0, np.int64), *(sample.classes for sample in samples)])
    boxes_xyxy = np.concatenate([np.empty((0, 4), np.float32), *(sample.boxes_xyxy for sample in samples)])
    boxes_xywhn = xyxy_to_xywh(boxes_xyxy) / np.array([width, height] * 2, np.float32)
    return Targets(
        torch.from_numpy(np.repeat(np.arange(len(samples), dtype=np.int64), counts)),
        torch.from_numpy(classes.astype(np.int64, copy=False)),
        torch.from_numpy(boxes_xywhn.astype(np.float32, copy=False)),
    )
