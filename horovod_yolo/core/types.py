"""Data that passes between the parts, and the legend of shapes.

Shape legend, used in names and docstrings everywhere:

====  ===========================================================
B     images in the batch (of this rank, unless it says global)
N     boxes of the batch, all images together
n     boxes of one image
C     classes
A     anchors per level (3)
L     levels (3 for P3-P5, 4 for P3-P6)
H, W  pixels of the network's input; ``H_l, W_l`` cells of level l
====  ===========================================================

Boxes are float32. Their format is part of the name: ``boxes_xyxy`` are corners in pixels,
``boxes_xywh`` centre and size in pixels, ``boxes_xywhn`` the same as a share of the image's size,
``boxes_ltwh`` COCO's left, top, width, height in pixels. Images are RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[np.uint8]  # (H, W, 3) RGB
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class SampleKey(NamedTuple):
    """Names one training sample completely: with the seed, every pixel of it follows from this."""

    epoch: int
    index: int  # type: ignore[assignment]  # in the data set; hides tuple.index, which nobody needs
    height: int
    width: int
    draw: int = 0  # how often the image was drawn before in this epoch, with --image-weights
    apart: bool = False  # not mixed with other images: no mosaic, mixup, CutMix


@dataclass(frozen=True)
class Letterbox:
    """How an image was fitted into the network's input: ``x_input = x_original * gain + pad``."""

    height: int  # of the original
    width: int
    gain_x: float
    gain_y: float
    pad_left: float
    pad_top: float

    def to_original(self, boxes_xyxy: Tensor) -> Tensor:
        """Map (n, 4) boxes from input pixels to original pixels, clipped to the original image."""
        if boxes_xyxy.numel() == 0:
            return boxes_xyxy
        pad = boxes_xyxy.new_tensor([self.pad_left, self.pad_top] * 2)
        gain = boxes_xyxy.new_tensor([self.gain_x, self.gain_y] * 2)
        limit = boxes_xyxy.new_tensor([self.width, self.height] * 2)
        return ((boxes_xyxy - pad) / gain).clamp(min=0).minimum(limit)


class LostImage(NamedTuple):
    """An image that could be used when the job started and cannot be read any more."""

    path: str
    reason: str
    position: int = -1  # in the data set, where the sample that it belongs to can say so


@dataclass(frozen=True)
class Targets:
    """All ground-truth boxes of a batch, flat. They stay on the host, where matching begins with them."""

    image: Tensor  # (N,) int64, position of the box's image in the batch
    classes: Tensor  # (N,) int64
    boxes_xywhn: Tensor  # (N, 4) float32


@dataclass(frozen=True)
class TaughtTargets(Targets):
    """With what a teacher says of the same images, on the host too."""

    taught_image: Tensor  # (K,) int64, in ascending order
    taught_xyxy: Tensor  # (K, 4) in input pixels
    taught_scores: Tensor  # (K, C) for the student's classes


@dataclass(frozen=True)
class Batch:
    """One rank's slice of one global batch. B may be 0: a rank without a share still takes part."""

    images: Tensor  # (B, 3, H, W) uint8
    targets: Targets
    indices: Tensor  # (B,) int64, position in the index
    letterboxes: Sequence[Letterbox]  # B of them; meaningful in validation only
    lost: Sequence[LostImage] = ()  # met while it was made
    replaced: int = 0  # of the B, those that show another image because their own is lost
    first: int = 0  # place of the first of them in the global batch
    slices: tuple[int, ...] = ()  # images of each slice, in order, where they are more than one

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def in_slices(self) -> list[Batch]:
        """Each slice as a batch of its own, which does not know its place; one at least, maybe empty."""
        if not self.slices:
            return [self]
        ends = accumulate(self.slices)
        return [self._part(end - size, end) for end, size in zip(ends, self.slices, strict=True)]

    def split(self, count: int) -> list[Batch]:
        """The batch as ``count`` micro-batches whose sizes differ by one at most; some may be empty.

        The k-th has every ``count``-th image of the *global* batch, from its k-th on: over all ranks it is
        the same images whatever the number of ranks.
        """
        if count == 1:
            return [self]
        return [self._part((k - self.first) % count, len(self), count) for k in range(count)]

    def without_images(self) -> Batch:
        """What a rank has that has no share in the global batch."""
        return replace(self._part(0, 0), slices=(0,) * len(self.slices))

    def _part(self, start: int, end: int, step: int = 1) -> Batch:
        """Every ``step``-th image from ``start`` to before ``end``; the result does not know its place."""
        of, places = self.targets, self.targets.image - start
        inside = (places >= 0) & (of.image < end) & (places % step == 0)
        return replace(
            self,
            images=self.images[start:end:step],
            targets=Targets(places[inside] // step, of.classes[inside], of.boxes_xywhn[inside]),
            indices=self.indices[start:end:step],
            letterboxes=self.letterboxes[start:end:step],
            first=0,
            slices=(),
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Copy the images to a device."""
        return replace(self, images=self.images.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Copy the images to page-locked memory (the DataLoader calls this)."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class Detections:
    """What the network found in one image, best score first."""

    boxes_xyxy: Tensor  # (n, 4) float32
    scores: Tensor  # (n,) float32
    classes: Tensor  # (n,) int64

    def __len__(self) -> int:
        return int(self.scores.shape[0])


class Decoded(NamedTuple):
    """Boxes with their scores for every class, before suppression; M places of an image predict a box."""

    boxes_xyxy: Tensor  # (B, M, 4) in input pixels
    scores: Tensor  # (B, M, C) in 0..1
