"""Images that vanish or break while a job runs: the next one of the epoch's order takes their place.

Which one that is follows from the order and from what is lost. What one host has lost others may still read:
so ranks agree on what all leave out (`Trainer`), and what is known to be lost is not even tried.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np

from horovod_yolo.core.types import Image, Ints
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.read import ImageError

MOST_IN_A_ROW = 100  # images tried before a data set counts as gone


class Pictures:
    """The images that go into one sample.

    Args:
        annotations: the data set.
        load: gives the (H, W, 3) image of a position in the data set, at its size or scaled.
        order: gives the epoch's order, (count,); asked for only where an image is lost. None: no substitutes.
        left_out: positions that count as lost.

    Attributes:
        lost: why an image could not be read, by its position.
    """

    def __init__(
        self,
        annotations: Annotations,
        load: Callable[[int], Image],
        order: Callable[[], Ints] | None = None,
        left_out: Collection[int] = (),
    ) -> None:
        self.lost: dict[int, ImageError] = {}
        self._annotations = annotations
        self._load = load
        self._order = order
        self._left_out = left_out

    def size(self, position: int) -> tuple[int, int]:
        """(height, width) of an image in pixels, also where it is lost."""
        return self._annotations.size(position)

    def take(self, position: int) -> tuple[Image, Record]:
        """An image with its record, or those of the next in the order that can be read.

        Raises:
            ImageError: of the image itself, where neither it nor any of those after it can be read.
        """
        for candidate in self._from(position):
            if candidate not in self.lost and candidate not in self._left_out:
                try:
                    return self._load(candidate), self._annotations.records[candidate]
                except ImageError as error:
                    self.lost[candidate] = error
        raise self.lost.get(position) or ImageError(
            self._annotations.image_path(position), "lost earlier, and no other can be read"
        )

    def _from(self, position: int) -> Iterator[int]:
        yield position
        if self._order is None:
            return
        order = self._order()
        (place,) = np.flatnonzero(order == position)
        yield from np.roll(order, -int(place))[1:MOST_IN_A_ROW].tolist()
