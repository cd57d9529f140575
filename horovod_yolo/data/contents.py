"""What is in a split, in four bytes an image: enough to tell lost images from changed ones."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Floats, Ints

Marks = NDArray[np.uint32]  # (images,)
_FACTORS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1], np.uint64)
_MIX = np.uint64(0xFF51AFD7ED558CCD)


def marks(paths: Iterable[str], sizes: Ints, ends: Ints, classes: Ints, boxes_xyxy: Floats) -> Marks:
    """A number for each image that follows from its name, size and objects, in any order of these.

    Args:
        paths: of the images, relative to the data set's root.
        sizes: (images, 2) height and width, pixels.
        ends: (images,) how many objects there are up to the end of each image.
        classes: (objects,).
        boxes_xyxy: (objects, 4) float32.
    """
    names = np.fromiter((zlib.crc32(path.encode(errors="surrogateescape")) for path in paths), np.uint64)
    bits = np.ascontiguousarray(boxes_xyxy, np.float32).view(np.uint32).astype(np.uint64)
    objects = _mixed((np.column_stack((classes.astype(np.uint64), bits)) * _FACTORS).sum(axis=1))
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(objects)))
    of_image = sums[ends] - sums[np.concatenate((np.zeros(1, np.int64), ends[:-1]))] if len(ends) else objects
    both = np.column_stack((names, sizes.astype(np.uint64), of_image)) * _FACTORS[:4]
    return (_mixed(both.sum(axis=1)) >> np.uint64(32)).astype(np.uint32)


class Change(NamedTuple):
    """How many images are only in one of two splits; one with other labels is in both numbers."""

    gone: int
    come: int


def compare(before: Marks, after: Marks) -> Change:
    """Compare two splits, in any order."""
    values, counts = np.unique(np.concatenate((before, after)), return_counts=True)
    old = np.zeros(len(values), np.int64)
    old_values, old_counts = np.unique(before, return_counts=True)
    old[np.searchsorted(values, old_values)] = old_counts
    more = counts - 2 * old  # after minus before
    return Change(gone=int(-more[more < 0].sum()), come=int(more[more > 0].sum()))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(33))) * _MIX
    return values ^ (values >> np.uint64(33))
