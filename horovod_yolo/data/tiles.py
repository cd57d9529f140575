"""Pictures on a canvas that is seen through a homography, put straight into the input: no canvas is made.

Each picture has a place on the canvas. Its own map, from its pixels to the input's, is that of its place and
the homography in one, and only the part in view is drawn. An upright map (zoom and shift alone, the usual
one) is a resize of whole pixels of the picture to whole pixels of the input, several times as fast as a warp.
That moves the picture by at most half of one of its pixels, so `draw` gives back the map that it has used,
and boxes follow that one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Image, Letterbox
from horovod_yolo.data.colours import ColourChange
from horovod_yolo.data.geometry import LEAST_DEPTH, Matrix, shift
from horovod_yolo.data.letterbox import Window

_FRACTION_BITS = 6  # of a pixel, in the corners of polygons


class Place(NamedTuple):
    """Where a picture lies on the canvas."""

    fit: Letterbox  # from its original pixels to the canvas
    window_xyxy: Window  # pixels of the canvas it covers; cut where the canvas ends


class _Axis(NamedTuple):
    """A run of the picture's pixels that becomes a run of the input's."""

    start: int  # input
    stop: int
    source_start: int
    source_stop: int
    average: int  # as many pixels of the picture are averaged first


def is_upright(homography: Matrix) -> bool:
    """Whether a map only zooms and shifts."""
    (zoom_x, slant_x, _), (slant_y, zoom_y, _), depth = homography.tolist()
    return bool(slant_x == slant_y == 0 and depth == [0, 0, 1] and zoom_x > 0 and zoom_y > 0)


def reaches(place: Place, homography: Matrix, height: int, width: int) -> bool:
    """Whether the upright rectangle around a mapped picture touches the input: no box in it can, if not."""
    if is_upright(homography):
        (zoom_x, _, to_x), (_, zoom_y, to_y), _ = homography.tolist()
        x1, y1, x2, y2 = place.window_xyxy
        across = zoom_x * x2 + to_x > 0 and zoom_x * x1 + to_x < width
        return bool(across and zoom_y * y2 + to_y > 0 and zoom_y * y1 + to_y < height)
    polygon = _polygon(place, homography)
    if not len(polygon):
        return False
    (left, top), (right, bottom) = polygon.min(0), polygon.max(0)
    return bool(right > 0 and bottom > 0 and left < width and top < height)


def draw(
    out: Image, picture: Image, place: Place, homography: Matrix, recolour: ColourChange | None = None
) -> Matrix:
    """Draw the part of a picture that is in view.

    Args:
        out: (height, width, 3), the input; what the picture does not cover stays.
        picture: (H, W, 3) at its original size, at 1 / 2, 4 or 8 of it, or scaled otherwise.
        place: of the picture.
        homography: from the canvas to the input.
        recolour: changes the picture's colours, before or after it is drawn: where there are fewer pixels.
            Only where `is_upright`.

    Returns:
        The map from the canvas to the input that the drawn pixels follow.
    """
    gains = _gains(picture, place.fit)
    if is_upright(homography):
        return _draw_upright(out, picture, place, homography, gains, recolour)
    _draw_turned(out, picture, place, homography, gains)
    return homography


def _gains(picture: Image, fit: Letterbox) -> tuple[float, float]:
    """Pixels of the canvas to one of the picture, across and down."""
    rows, columns = picture.shape[:2]
    # A reduced picture's last pixels may be of a part only, so that the ratio of sizes says too little.
    reduction = round(fit.width / columns)
    if reduction > 1 and (rows, columns) == (-(-fit.height // reduction), -(-fit.width // reduction)):
        return fit.gain_x * reduction, fit.gain_y * reduction
    return fit.gain_x * fit.width / columns, fit.gain_y * fit.height / rows


def _draw_upright(
    out: Image,
    picture: Image,
    place: Place,
    homography: Matrix,
    gains: tuple[float, float],
    recolour: ColourChange | None,
) -> Matrix:
    x1, y1, x2, y2 = place.window_xyxy
    zoom_x, zoom_y = float(homography[0, 0]), float(homography[1, 1])
    to_x, to_y = float(homography[0, 2]), float(homography[1, 2])
    pad_x, pad_y = place.fit.pad_left, place.fit.pad_top
    across = _axis((x1, x2), zoom_x, to_x, pad_x, gains[0], picture.shape[1], out.shape[1])
    down = _axis((y1, y2), zoom_y, to_y, pad_y, gains[1], picture.shape[0], out.shape[0])
    if across is None or down is None:
        return homography
    part = picture[down.source_start : down.source_stop, across.source_start : across.source_stop]
    if across.average > 1 or down.average > 1:
        size = (part.shape[1] // across.average, part.shape[0] // down.average)
        part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
    target = out[down.start : down.stop, across.start : across.stop]
    first = recolour is not None and part.size < target.size
    if recolour is not None and first:
        part = recolour(part)
    cv2.resize(part, (target.shape[1], target.shape[0]), dst=target, interpolation=cv2.INTER_LINEAR)
    if recolour is not None and not first:
        recolour(target, target)
    used = np.eye(3)
    used[0, 0], used[0, 2] = _used(across, pad_x, gains[0])
    used[1, 1], used[1, 2] = _used(down, pad_y, gains[1])
    return used


def _axis(
    window: tuple[int, int], zoom: float, to: float, pad: float, gain: float, source: int, size: int
) -> _Axis | None:
    """The runs of an axis; None where nothing is in view.

    A pixel of the input shows the picture where the middle of the pixel does.
    """
    start, stop = (min(max(math.ceil(zoom * edge + to - 0.5), 0), size) for edge in window)
    if start >= stop:
        return None
    first, last = (((edge - to) / zoom - pad) / gain for edge in (start, stop))
    average = min(_averaged((last - first) / (stop - start)), source)
    count = min(max(round((last - first) / average), 1), source // average)
    begin = min(max(round(first), 0), source - count * average)
    return _Axis(start, stop, begin, begin + count * average, average)


def _averaged(pixels: float) -> int:
    """How many pixels are averaged before two are interpolated, where the next sample is so many further."""
    average = 1
    while pixels > 2 * average:
        average *= 2
    return average


def _used(axis: _Axis, pad: float, gain: float) -> tuple[float, float]:
    """Zoom and shift from canvas to input of an axis."""
    zoom = (axis.stop - axis.start) / (axis.source_stop - axis.source_start)
    return zoom / gain, axis.start - (axis.source_start + pad / gain) * zoom


def _polygon(place: Place, homography: Matrix) -> NDArray[np.float64]:
    """(n, 2) the picture's outline in the input, without what lies behind the viewer."""
    x1, y1, x2, y2 = place.window_xyxy
    corners = np.array([[x1, y1, 1], [x2, y1, 1], [x2, y2, 1], [x1, y2, 1]], np.float64) @ homography.T
    if corners[:, 2].min() < LEAST_DEPTH:
        corners = _in_sight(corners)
    return np.asarray(corners[:, :2] / corners[:, 2:])


def _in_sight(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """A convex polygon of homogeneous corners, (n, 3), cut at `LEAST_DEPTH`."""
    kept = []
    for one, other in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if one[2] >= LEAST_DEPTH:
            kept.append(one)
        if (one[2] >= LEAST_DEPTH) != (other[2] >= LEAST_DEPTH):
            share = (LEAST_DEPTH - one[2]) / (other[2] - one[2])
            kept.append(one + share * (other - one))
    return np.array(kept).reshape(-1, 3)


def _draw_turned(
    out: Image, picture: Image, place: Place, homography: Matrix, gains: tuple[float, float]
) -> None:
    height, width = out.shape[:2]
    polygon = _polygon(place, homography)
    if not len(polygon):
        return
    left, top = np.floor(polygon.min(0)).clip(0, (width, height)).astype(int).tolist()
    right, bottom = np.ceil(polygon.max(0)).clip(0, (width, height)).astype(int).tolist()
    if left >= right or top >= bottom:
        return
    to_canvas = np.diag((gains[0], gains[1], 1.0))
    to_canvas[:2, 2] = place.fit.pad_left, place.fit.pad_top
    x1, y1, x2, y2 = place.window_xyxy
    seen = float(cv2.contourArea(polygon.astype(np.float32))) * gains[0] * gains[1]
    average = _averaged(math.sqrt((x2 - x1) * (y2 - y1) / max(seen, 1e-9)))
    average = min(average, picture.shape[0], picture.shape[1])
    if average > 1:
        rows, columns = (side // average for side in picture.shape[:2])
        whole = picture[: rows * average, : columns * average]
        picture = np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)
        to_canvas[:2, :2] *= average
    # OpenCV puts coordinate i on the middle of pixel i, and a corner of a polygon likewise.
    pixels = shift(-left - 0.5, -top - 0.5) @ homography @ to_canvas @ shift(0.5, 0.5)
    size, mask = (right - left, bottom - top), np.zeros((bottom - top, right - left), np.uint8)
    flat = (pixels[2] == (0, 0, 1)).all()
    warp, matrix = (cv2.warpAffine, pixels[:2]) if flat else (cv2.warpPerspective, pixels)
    patch = warp(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    corners = np.rint((polygon - (left + 0.5, top + 0.5)) * (1 << _FRACTION_BITS)).astype(np.int32)
    cv2.fillConvexPoly(mask, corners, 1, shift=_FRACTION_BITS)
    cv2.copyTo(patch, mask, out[top:bottom, left:right])
