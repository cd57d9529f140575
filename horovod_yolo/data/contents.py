"""What is in a split, in four bytes an image: enough to tell lost images from changed ones."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Floats, Ints

Marks = NDArray[np.uint32]  # (images,)
_FACTORS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1], np.uint64)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_OBJECTS_AT_ONCE = 1 << 18  # some tens of megabytes


def marks(paths: Iterable[str], sizes: Ints, ends: Ints, classes: Ints, boxes_xyxy: Floats) -> Marks:
    """A number for each image that follows from its name, size and objects, in any order of these.

    Args:
        paths: of the images, relative to the data set's root.
        sizes: (images, 2) height and width, pixels.
        ends: (images,) how many objects there are up to the end of each image.
        classes: (objects,).
        boxes_xyxy: (objects, 4) float32.
    """
    names = np.fromiter((zlib.crc32(os.fsencode(path)) for path in paths), np.uint64)
    sums = np.zeros(1 + len(classes), np.uint64)  # of the objects before each; they wrap
    for start in range(0, len(classes), _OBJECTS_AT_ONCE):
        some = slice(start, start + _OBJECTS_AT_ONCE)
        sums[1:][some] = sums[start] + np.cumsum(_of_objects(classes[some], boxes_xyxy[some]))
    of_image = np.diff(sums[ends], prepend=sums[:1])
    both = np.column_stack((names, sizes.astype(np.uint64), of_image)) * _FACTORS[:4]
    return (_mixed(both.sum(axis=1)) >> np.uint64(32)).astype(np.uint32)


def _of_objects(classes: Ints, boxes_xyxy: Floats) -> NDArray[np.uint64]:
    bits = np.ascontiguousarray(boxes_xyxy, np.float32).view(np.uint32).astype(np.uint64)
    return _mixed((np.column_stack((classes.astype(np.uint64), bits)) * _FACTORS).sum(axis=1))


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
