"""The published layer tables, written down a second time: (inputs, operation) by row.

Inputs are relative (-1 is the row before) or absolute rows. An operation is ``layer`` (the model's module of
that row), ``up``, ``cat``, ``pool`` (2x2, stride 2) or ``pool1`` (zeros at right and bottom, 2x2, stride 1).
The last row names the rows that the head reads.
"""

from __future__ import annotations

Row = tuple[int | tuple[int, ...], str]

LAYER: Row = (-1, "layer")
UP: Row = (-1, "up")
POOL: Row = (-1, "pool")


def cat(other: int) -> Row:
    return ((-1, other), "cat")


YOLOV5: list[Row] = [
    *[LAYER] * 10,
    *[LAYER, UP, cat(6), LAYER],
    *[LAYER, UP, cat(4), LAYER],
    *[LAYER, cat(14), LAYER],
    *[LAYER, cat(10), LAYER],
    ((17, 20, 23), "head"),
]
YOLOV5_P6: list[Row] = [
    *[LAYER] * 12,
    *[LAYER, UP, cat(8), LAYER],
    *[LAYER, UP, cat(6), LAYER],
    *[LAYER, UP, cat(4), LAYER],
    *[LAYER, cat(20), LAYER],
    *[LAYER, cat(16), LAYER],
    *[LAYER, cat(12), LAYER],
    ((23, 26, 29, 32), "head"),
]
YOLOV8: list[Row] = [
    *[LAYER] * 10,
    *[UP, cat(6), LAYER],
    *[UP, cat(4), LAYER],
    *[LAYER, cat(12), LAYER],
    *[LAYER, cat(9), LAYER],
    ((15, 18, 21), "head"),
]
YOLO11: list[Row] = [  # and YOLO26
    *[LAYER] * 11,
    *[UP, cat(6), LAYER],
    *[UP, cat(4), LAYER],
    *[LAYER, cat(13), LAYER],
    *[LAYER, cat(10), LAYER],
    ((16, 19, 22), "head"),
]
YOLOV3: list[Row] = [
    *[LAYER] * 16,
    *[(-2, "layer"), UP, cat(8), LAYER, LAYER, LAYER, LAYER],
    *[(-2, "layer"), UP, cat(6), LAYER, LAYER],
    ((27, 22, 15), "head"),
]
YOLOV3_TINY: list[Row] = [
    *[LAYER, POOL] * 5,
    *[LAYER, (-1, "keep"), (-1, "pool1"), LAYER, LAYER, LAYER],
    *[(-2, "layer"), UP, cat(8), LAYER],
    ((19, 15), "head"),
]
