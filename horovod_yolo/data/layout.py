"""How pictures lie on the canvas of a sample: one in its middle, or four around a point."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from horovod_yolo.core.types import Letterbox, SampleKey
from horovod_yolo.data.letterbox import centred, fitted_size
from horovod_yolo.data.tiles import Place

PlaceOf = Callable[[int, int], Place]  # of a picture of (height, width) pixels


class Layout(NamedTuple):
    """What lies where. Nothing of it is in memory."""

    canvas: tuple[int, int]  # rows, columns
    pictures: tuple[tuple[int, PlaceOf], ...]  # position in the data set; later ones lie on top


def single(key: SampleKey) -> Layout:
    """The key's own picture in the middle of a canvas of the input's size."""
    place = partial(_centred, canvas=(key.height, key.width))
    return Layout((key.height, key.width), ((key.index, place),))


def mosaic(rng: np.random.Generator, key: SampleKey, count: int) -> Layout:
    """Four pictures around a random point of a canvas twice the input's size.

    Introduced as "Mosaic" by Bochkovskiy et al., "YOLOv4", 2020, section 3.4.
    """
    height, width = key.height, key.width
    x, y = (int(v) for v in rng.uniform((width / 2, height / 2), (1.5 * width, 1.5 * height)))
    positions = rng.permutation([key.index, *rng.integers(count, size=3)]).tolist()
    places = (partial(_beside, corner=corner, centre=(x, y), size=(height, width)) for corner in range(4))
    return Layout((2 * height, 2 * width), tuple(zip(positions, places, strict=True)))


def _centred(rows: int, columns: int, canvas: tuple[int, int]) -> Place:
    return Place(*centred(rows, columns, *canvas))


def _beside(rows: int, columns: int, corner: int, centre: tuple[int, int], size: tuple[int, int]) -> Place:
    """As large as fits the input, left above (0), right above, left below or right below (3) the centre."""
    (height, width), (x, y) = size, centre
    tile_rows, tile_columns = fitted_size(rows, columns, height, width)
    left, top = x - (0 if corner % 2 else tile_columns), y - (0 if corner // 2 else tile_rows)
    window = (
        max(left, 0),
        max(top, 0),
        min(left + tile_columns, 2 * width),
        min(top + tile_rows, 2 * height),
    )
    return Place(Letterbox(rows, columns, tile_columns / columns, tile_rows / rows, left, top), window)
