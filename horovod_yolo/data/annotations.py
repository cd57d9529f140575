"""Annotations: every usable image of a split with its objects, in an order that all ranks agree on.

They are columns of one memory-mapped file, so that a million images cost a process that opens them nothing.
Ranks and data workers of a host share its pages; pickled, annotations are the file's address.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Floats, Ints
from horovod_yolo.data.contents import Marks, marks
from horovod_yolo.data.shards import ImageFile, PackedImage, Shards
from horovod_yolo.data.table import Table, ragged, ragged_row
from horovod_yolo.io.columns import Column, ColumnFile, bytes_of, columns_in_memory

FORMAT_VERSION = 5  # of the columns; a new one when the same files would give others

_OF_IMAGES = ("folder", "name", "name_end", "height", "width", "object_end", "image_id", "image_id_end")
_OF_OBJECTS = ("class_id", "box_xyxy", "crowd", "area")
_OF_FOLDERS = ("folder_name", "folder_name_end")


@dataclass(frozen=True, eq=False)
class Record:
    """One usable image and its objects."""

    path: str  # posix, relative to the root of the annotations; absolute when the image is not below it
    height: int  # pixels, upright
    width: int
    classes: Ints  # (n,)
    boxes_xyxy: Floats  # (n, 4) pixels of the upright image, clipped to it
    crowd: NDArray[np.bool_]  # (n,)
    areas: Floats  # (n,) pixels: the box's, or what COCO's file states
    image_id: int | str  # COCO's, else the position among the entries


class Annotations:
    """The usable images of a split.

    Arrays are read-only. Those of objects hold all images one after the other; ``counts`` says how many each
    has.
    """

    def __init__(
        self, root: Path, file: ColumnFile, copies: Callable[[int], ImageFile | None] | None = None
    ) -> None:
        """``copies`` gives this host's copy of an image where it has one; see `stage`. Picklable."""
        self.root = root
        self.file = file
        self._copies = copies
        self.names: tuple[str, ...] = tuple(file.about["names"])
        self._ends: Ints = file["object_end"]
        self._folders: dict[int, str] = {}
        self._shards = Shards(root, file.about["pack"]) if "pack" in file.about else None

    @classmethod
    def of(cls, root: Path, names: Sequence[str], records: Iterable[Record]) -> Annotations:
        """Annotations in memory."""
        listed = list(records)
        found = {
            **object_columns(listed),
            "height": np.array([record.height for record in listed], np.int32),
            "width": np.array([record.width for record in listed], np.int32),
        }
        paths, image_ids = ([getattr(record, name) for record in listed] for name in ("path", "image_id"))
        columns = image_columns(paths, image_ids, found)
        return cls(root, columns_in_memory(about(names, columns), columns))

    def at(self, root: Path) -> Annotations:
        """The same images in the same order, in another folder."""
        return Annotations(root, self.file)

    def with_copies(self, copies: Callable[[int], ImageFile | None]) -> Annotations:
        """The same, read from copies on this host as far as there are any."""
        return Annotations(self.root, self.file, copies)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def records(self) -> Records:
        """The images one by one, each made when it is asked for."""
        return Records(self)

    @property
    def digest(self) -> str:
        """Names what is in them, not where it lies: equal on all ranks and after moving the data."""
        return str(self.file.about["digest"])

    @property
    def marks(self) -> Marks:
        """(images,) a number for what is in each, see `contents.marks`."""
        return self.file["mark"]

    @property
    def heights(self) -> NDArray[np.int32]:
        """(images,) pixels, upright."""
        return self.file["height"]

    @property
    def widths(self) -> NDArray[np.int32]:
        """(images,) pixels."""
        return self.file["width"]

    @property
    def counts(self) -> Ints:
        """(images,) objects of each image."""
        return np.diff(self._ends, prepend=0)

    @property
    def classes(self) -> NDArray[np.int32]:
        """(objects,) of all images."""
        return self.file["class_id"]

    @property
    def boxes_xyxy(self) -> Floats:
        """(objects, 4) pixels."""
        return self.file["box_xyxy"]

    @property
    def crowd(self) -> NDArray[np.bool_]:
        """(objects,)."""
        return self.file["crowd"]

    @property
    def areas(self) -> Floats:
        """(objects,) pixels."""
        return self.file["area"]

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of the i-th image in pixels."""
        return int(self.heights[i]), int(self.widths[i])

    def image_path(self, i: int) -> Path:
        """What the i-th image's file is called; in a pack, where it would be unpacked."""
        return self.root / self.path(i)

    def nearest_file(self, i: int) -> ImageFile:
        """Where the i-th image is read: this host's copy, or the data set's own file."""
        return (self._copies and self._copies(i)) or self.image_file(i)

    def image_file(self, i: int) -> Path | PackedImage:
        """The data set's file of the i-th image."""
        path = self.image_path(i)
        if self._shards is None:
            return path
        place = (int(self.file[name][i]) for name in ("shard", "offset", "length", "crc32"))
        return PackedImage(path, self._shards, *place)

    def path(self, i: int) -> str:
        """The i-th image's path as its record has it."""
        folder = int(self.file["folder"][i])
        if folder not in self._folders:
            self._folders[folder] = os.fsdecode(ragged_row(self.file.columns, "folder_name", folder))
        return self._folders[folder] + os.fsdecode(ragged_row(self.file.columns, "name", i))

    def image_id(self, i: int) -> int | str:
        """The i-th image's id as its record has it."""
        if "image_id_end" not in self.file:
            return int(self.file["image_id"][i])
        stated: int | str = json.loads(ragged_row(self.file.columns, "image_id", i))
        return stated

    def record(self, i: int) -> Record:
        """The i-th image, for i >= 0."""
        objects = slice(int(self._ends[i - 1]) if i else 0, int(self._ends[i]))
        return Record(
            path=self.path(i),
            height=int(self.heights[i]),
            width=int(self.widths[i]),
            classes=self.classes[objects].astype(np.int64),
            boxes_xyxy=self.boxes_xyxy[objects],
            crowd=self.crowd[objects],
            areas=self.areas[objects],
            image_id=self.image_id(i),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root, self.file, self._copies)


class Records(Sequence[Record]):
    """All records of annotations."""

    def __init__(self, annotations: Annotations) -> None:
        self._annotations = annotations

    def __len__(self) -> int:
        return len(self._annotations)

    @overload
    def __getitem__(self, i: int) -> Record: ...

    @overload
    def __getitem__(self, i: slice) -> list[Record]: ...

    def __getitem__(self, i: int | slice) -> Record | list[Record]:
        places = range(len(self))[i]
        if isinstance(places, range):
            return [self._annotations.record(place) for place in places]
        return self._annotations.record(places)


def about(names: Sequence[str], columns: Mapping[str, Column]) -> dict[str, Any]:
    """What the file of such columns says of itself."""
    return {"version": FORMAT_VERSION, "names": list(names), "digest": _digest(names, columns)}


def image_columns(paths: Sequence[str], image_ids: Sequence[int | str], found: Table) -> Table:
    """All columns of usable images, from what a scan has found in them: sizes and objects."""
    sizes = np.column_stack((found["height"], found["width"])).astype(np.int64)
    objects = (found[name] for name in ("object_end", "class_id", "box_xyxy"))
    return {**_paths(paths), **_ids(image_ids), **found, "mark": marks(paths, sizes, *objects)}


def _paths(paths: Iterable[str]) -> Table:
    """Relative paths as a number of a folder and the bytes of a name."""
    folders: dict[str, int] = {}
    numbers, pieces = [], []
    for path in paths:
        cut = path.rfind("/") + 1
        numbers.append(folders.setdefault(path[:cut], len(folders)))
        pieces.append(os.fsencode(path[cut:]))
    return {
        "folder": np.array(numbers, np.uint32),
        **ragged("name", pieces),
        **ragged("folder_name", [os.fsencode(folder) for folder in folders]),
    }


def _ids(image_ids: Sequence[int | str]) -> Table:
    """Ids as numbers; as text where one of them is no number of 64 bits."""
    if all(isinstance(image_id, int) and abs(image_id) < 1 << 63 for image_id in image_ids):
        return {"image_id": np.array(image_ids, np.int64)}
    return ragged("image_id", [json.dumps(image_id).encode() for image_id in image_ids])


def object_columns(found: Sequence[Any]) -> Table:
    """The objects of images one after the other; of anything with the arrays of a `Record`."""
    counts = [len(each.classes) for each in found]
    return {
        "object_end": np.cumsum(counts, dtype=np.int64),
        "class_id": _joined([each.classes for each in found], np.int32),
        "box_xyxy": _joined([each.boxes_xyxy for each in found], np.float32, 4),
        "crowd": _joined([each.crowd for each in found], np.bool_),
        "area": _joined([each.areas for each in found], np.float32),
    }


def _joined(arrays: Sequence[Column], kind: type[np.generic], *width: int) -> Column:
    joined: Column = np.concatenate([np.empty((0, *width), kind), *arrays])
    return joined.astype(kind, copy=False)


def _digest(names: Sequence[str], columns: Mapping[str, Column]) -> str:
    """Of what is there, not of how it is kept: checkpoints hold it, and outlive a cache's format."""
    total = hashlib.sha256(json.dumps(list(names)).encode())
    for name in (*_OF_IMAGES, *_OF_OBJECTS, *_OF_FOLDERS):
        if name in columns:
            total.update(f"\n{name} {columns[name].shape}\n".encode())
            total.update(bytes_of(columns[name]))
    return total.hexdigest()
