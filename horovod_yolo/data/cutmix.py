"""The geometry of CutMix: a rectangle of one image in the place of the same one of another.

Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019. For
detection the rectangle may hide no object, and must show one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Floats

RECTANGLES = 3  # that are drawn, for one that hides nothing
LEAST_SHARE = 0.1  # of a box's area that must be in the rectangle


class Rectangle(NamedTuple):
    """Whole pixels, the last ones exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def free_rectangle(rng: np.random.Generator, boxes_xyxy: Floats, height: int, width: int) -> Rectangle | None:
    """One of three random rectangles of an image that touches none of its boxes; None where each does.

    Args:
        rng: draws each rectangle's share of the area, 1 - Beta(1, 1), and its centre.
        boxes_xyxy: (n, 4) pixels.
        height: of the image, pixels.
        width: of the image, pixels.
    """
    drawn = [_rectangle(rng, height, width) for _ in range(RECTANGLES)]
    free = [one for one in drawn if not _common_areas(boxes_xyxy, one).any()]
    return free[int(rng.integers(len(free)))] if free else None


def _rectangle(rng: np.random.Generator, height: int, width: int) -> Rectangle:
    side = math.sqrt(1 - rng.beta(1.0, 1.0))
    centre_x, centre_y = rng.uniform(0, width), rng.uniform(0, height)
    edges_x = np.clip([centre_x - side * width / 2, centre_x + side * width / 2], 0, width)
    edges_y = np.clip([centre_y - side * height / 2, centre_y + side * height / 2], 0, height)
    return Rectangle(int(edges_x[0]), int(edges_y[0]), int(edges_x[1]), int(edges_y[1]))


def boxes_in(boxes_xyxy: Floats, rectangle: Rectangle) -> tuple[NDArray[np.bool_], Floats]:
    """Which of (n, 4) boxes have a tenth of their area in a rectangle, (n,); these, cut to it, (k, 4)."""
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    common = _common_areas(boxes_xyxy, rectangle)
    shown = np.asarray((common > 0) & (common >= LEAST_SHARE * areas))
    low, high = np.array(rectangle[:2] * 2, np.float32), np.array(rectangle[2:] * 2, np.float32)
    return shown, np.asarray(boxes_xyxy[shown].clip(low, high), np.float32)


def _common_areas(boxes_xyxy: Floats, rectangle: Rectangle) -> Floats:
    """(n,) pixels that boxes have in common with a rectangle."""
    low = np.maximum(boxes_xyxy[:, :2], np.array(rectangle[:2], np.float32))
    high = np.minimum(boxes_xyxy[:, 2:], np.array(rectangle[2:], np.float32))
    return np.asarray((high - low).clip(0).prod(axis=1), np.float32)
