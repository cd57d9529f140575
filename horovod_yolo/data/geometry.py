"""Where boxes go: homogeneous maps of the plane, upright boxes around what they map, what is worth keeping.

Coordinates are continuous: pixel i covers i to i + 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Floats

Matrix = NDArray[np.float64]  # (3, 3) homogeneous

MIN_SIDE = 2.0  # pixels; a box narrower or lower than this after the warp is dropped
MIN_AREA_SHARE = 0.1  # of the box's area before the warp (scaled alike) that must remain in view
MAX_ASPECT = 100.0
LEAST_DEPTH = (
    1e-3  # what a strong perspective maps nearer to the viewer than this, or behind, is out of sight
)

_CORNERS = (0, 1, 2, 1, 2, 3, 0, 3)


def shift(x: float, y: float) -> Matrix:
    """The map that moves everything by (x, y)."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def row_of(*values: float) -> Floats:
    """(n,) float32, to be used with rows of boxes."""
    return np.array(values, np.float32)


def clip_boxes(boxes_xyxy: Floats, height: int, width: int) -> Floats:
    """(n, 4) boxes, cut at the edges of height x width pixels."""
    return np.asarray(np.clip(boxes_xyxy, 0, row_of(width, height, width, height)), np.float32)


def warp_boxes(boxes_xyxy: Floats, homographies: Matrix) -> Floats:
    """The upright boxes around the mapped corners of (n, 4) boxes: one map for all (3, 3), or (n, 3, 3).

    What a strong perspective puts behind the viewer goes far out in its own direction instead of
    coming back mirrored.
    """
    corners = np.ones((len(boxes_xyxy), 4, 3))
    corners[:, :, :2] = boxes_xyxy[:, _CORNERS].reshape(-1, 4, 2)
    mapped = corners @ homographies.swapaxes(-1, -2)
    points = mapped[..., :2] / mapped[..., 2:].clip(LEAST_DEPTH)
    boxes: Floats = np.concatenate((points.min(1), points.max(1)), axis=1).astype(np.float32)
    return boxes


def still_visible(before_xyxy: Floats, after_xyxy: Floats) -> NDArray[np.bool_]:
    """Which boxes are worth keeping after the warp, (n,): large enough, not mostly cut off, no slivers."""
    before = before_xyxy[:, 2:] - before_xyxy[:, :2]
    after = after_xyxy[:, 2:] - after_xyxy[:, :2]
    large = (after > MIN_SIDE).all(1)
    whole = after.prod(1) > MIN_AREA_SHARE * before.prod(1)
    compact = after.max(1) < MAX_ASPECT * after.min(1)
    return np.asarray(large & whole & compact)
