"""Fit an image of any size into the network's input, and remember how."""

from __future__ import annotations

import math

import cv2
import numpy as np

from horovod_yolo.core.types import Floats, Image, Ints, Letterbox

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels, the last ones exclusive

GREY = 114  # what fills the input around an image, in all three channels


def fitted_size(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of an image that is scaled to the largest size of its shape inside height x width."""
    gain = min(height / rows, width / columns)
    return max(1, min(height, round(rows * gain))), max(1, min(width, round(columns * gain)))


def reduction_of(rows: int, columns: int, height: int, width: int) -> int:
    """8, 4, 2 or 1: the most that an image may shrink by and still be no smaller than `fitted_size` wants."""
    fitted_rows, fitted_columns = fitted_size(rows, columns, height, width)
    return next(
        n for n in (8, 4, 2, 1) if n == 1 or (rows >= n * fitted_rows and columns >= n * fitted_columns)
    )


def reductions_of(sizes: Ints, height: int, width: int) -> Ints:
    """`reduction_of` (n, 2) sizes, rows and columns: (n,)."""
    gains = np.minimum(height / sizes[:, 0], width / sizes[:, 1])[:, None]
    fitted = np.rint(sizes * gains).clip(1, (height, width)).astype(np.int64)
    most = (sizes // fitted).min(axis=1)
    return np.select([most >= 8, most >= 4, most >= 2], [8, 4, 2], 1).astype(np.int64)


def least_input(rows: int, columns: int, longest_side: int, stride: int) -> tuple[int, int]:
    """(height, width) of the smallest input, in whole strides, for an image with that longest side in it."""
    fitted = fitted_size(rows, columns, longest_side, longest_side)
    height, width = (math.ceil(side / stride) * stride for side in fitted)
    return height, width


def resize_to_fit(image: Image, height: int, width: int, antialias: bool = False) -> Image:
    """Scale an (H, W, 3) image, up or down, to the largest size of its shape inside height x width.

    ``antialias`` averages over the area of each new pixel where the image shrinks: better, slower.
    """
    rows, columns = fitted_size(image.shape[0], image.shape[1], height, width)
    if (rows, columns) == image.shape[:2]:
        return image
    shrinks = rows < image.shape[0] or columns < image.shape[1]
    interpolation = cv2.INTER_AREA if antialias and shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=interpolation), np.uint8)


def letterbox(
    image: Image,
    height: int,
    width: int,
    *,
    original: tuple[int, int] | None = None,
    longest_side: int | None = None,
    antialias: bool = False,
) -> tuple[Image, Letterbox]:
    """Centre an image on a grey input of exactly height x width, keeping its shape.

    Args:
        image: (H, W, 3).
        height: of the input, pixels.
        width: of the input, pixels.
        original: (height, width) that the boxes refer to, where ``image`` is a scaled copy of it.
        longest_side: the image's longest side gets no longer than this, so that ``height`` and
            ``width`` may add a margin (YOLOv5 validates ``--rect`` with half a stride of it).
        antialias: see `resize_to_fit`.

    Returns:
        The (height, width, 3) input and the mapping from original pixels to it. Rounding to whole
        pixels is part of the mapping, so it is exact.
    """
    limit = max(height, width) if longest_side is None else longest_side
    fitted = resize_to_fit(image, min(height, limit), min(width, limit), antialias)
    rows, columns = fitted.shape[:2]
    fit, (left, top, right, bottom) = _in_the_middle(
        original or (image.shape[0], image.shape[1]), (rows, columns), (height, width)
    )
    canvas = np.full((height, width, 3), GREY, np.uint8)
    canvas[top:bottom, left:right] = fitted
    return canvas, fit


def centred(rows: int, columns: int, height: int, width: int) -> tuple[Letterbox, Window]:
    """What `letterbox` does with an image of rows x columns, and the pixels of the input it then covers."""
    return _in_the_middle((rows, columns), fitted_size(rows, columns, height, width), (height, width))


def _in_the_middle(
    original: tuple[int, int], fitted: tuple[int, int], canvas: tuple[int, int]
) -> tuple[Letterbox, Window]:
    (rows, columns), (height, width) = fitted, canvas
    top, left = (height - rows) // 2, (width - columns) // 2
    gain_x, gain_y = columns / original[1], rows / original[0]
    fit = Letterbox(*original, gain_x, gain_y, float(left), float(top))
    return fit, (left, top, left + columns, top + rows)


def boxes_to_input(boxes_xyxy: Floats, fit: Letterbox) -> Floats:
    """Map (n, 4) boxes from original pixels to input pixels."""
    gain = np.array([fit.gain_x, fit.gain_y] * 2, np.float32)
    pad = np.array([fit.pad_left, fit.pad_top] * 2, np.float32)
    return boxes_xyxy * gain + pad
