"""A part of the images of a split, chosen by their names: ``--fraction``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import numpy as np

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Ints
from horovod_yolo.data.annotations import Annotations, about
from horovod_yolo.data.table import Table, places_of
from horovod_yolo.io.columns import Column, columns_in_memory

_OF_IMAGES = ("folder", "height", "width", "mark", "shard", "offset", "length", "crc32")
_OF_OBJECTS = ("class_id", "box_xyxy", "crowd", "area")
_OF_ENTRIES = ("image_content", "label_content", "image_state", "label_state")
_OF_ALL = ("folder_name", "folder_name_end", "shard_bytes", "shard_sha256")


def share_of(annotations: Annotations, fraction: float, seed: int) -> Annotations:
    """About that share of the images, at least one; all where it is 1.

    An image is in it where a hash of the seed and its path is low: whatever other images there are, on every
    machine, in every order. So an image that is lost brings no other one in.

    Raises:
        UserError: none of them has an object.
    """
    if fraction == 1:
        return annotations
    hashes = [
        hashlib.sha256(f"{seed} ".encode() + os.fsencode(annotations.path(i))).digest()[:8]
        for i in range(len(annotations))
    ]
    values = np.array([int.from_bytes(value, "big") for value in hashes], np.float64)
    rows = np.flatnonzero(values <= max(fraction * 2.0**64, values.min()))
    chosen = _rows_of(annotations, rows)
    if not len(chosen.classes):
        what = f"--fraction {fraction:g}: none of the {len(chosen)} images has an object"
        raise UserError(what, where=annotations.root, fix="take a larger one, or another --seed")
    return chosen


def _rows_of(annotations: Annotations, rows: Ints) -> Annotations:
    """Some images, as if no other had been scanned. What was found wrong has been said."""
    old: Mapping[str, Column] = annotations.file.columns
    entries = np.flatnonzero(old["usable"])[rows] if "usable" in old else rows
    columns: Table = {
        **{name: old[name][rows] for name in _OF_IMAGES if name in old},
        **{name: old[name][entries] for name in _OF_ENTRIES if name in old},
        **{name: old[name] for name in _OF_ALL if name in old},
        **_pieces(old, "name_end", ("name",), rows),
        **_pieces(old, "object_end", _OF_OBJECTS, rows),
        "usable": np.ones(len(rows), np.bool_),
        "problem_count": np.zeros(len(rows), np.int32),
    }
    if "image_id_end" in old:
        columns |= _pieces(old, "image_id_end", ("image_id",), rows)
    else:
        columns["image_id"] = old["image_id"][rows]
    said = about(annotations.names, columns)
    if "pack" in annotations.file.about:
        said["pack"] = annotations.file.about["pack"]
    return Annotations(annotations.root, columns_in_memory(said, columns))


def _pieces(old: Mapping[str, Column], end: str, names: tuple[str, ...], rows: Ints) -> Table:
    ends, places = places_of(old[end], rows)
    return {end: ends, **{name: old[name][places] for name in names}}
