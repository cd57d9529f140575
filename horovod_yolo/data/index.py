"""The index: every usable image of a split with its labels, in an order that all ranks agree on.

``list_entries`` is cheap and gives the same list everywhere. ``scan`` opens every image: ranks each take a
slice of the entries and concatenate what they get. ``assemble`` makes the index of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Floats, Ints
from horovod_yolo.data.formats import Entry, Folders, Problem, coco, voc, yolo
from horovod_yolo.data.read import IMAGE_SUFFIXES, ImageError, MissingImageError, verify_image
from horovod_yolo.data.spec import DataSpec

__all__ = [
    "Entry",
    "Index",
    "Problem",
    "Record",
    "assemble",
    "fingerprint",
    "list_entries",
    "relative_name",
    "scan",
]

THREADS = 16
FILES_AT_ONCE = 256
FORMAT_VERSION = 1  # of the index; a new one when the same files would give other records


@dataclass(frozen=True, eq=False)
class Record:
    """One usable image and its objects."""

    path: str  # posix, relative to the index's root; absolute when the image is not below it
    height: int  # pixels, upright
    width: int
    classes: Ints  # (n,)
    boxes_xyxy: Floats  # (n, 4) pixels of the upright image, clipped to it
    crowd: NDArray[np.bool_]  # (n,)
    areas: Floats  # (n,) pixels: the box's, or what COCO's file states
    image_id: int | str  # COCO's, else the position among the entries


@dataclass(frozen=True, eq=False)
class Index:
    """The usable images of a split."""

    root: Path
    names: tuple[str, ...]
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def image_path(self, i: int) -> Path:
        """Where the i-th image is."""
        return self.root / self.records[i].path

    @cached_property
    def digest(self) -> str:
        """Names what is in the index, not where it lies: equal on all ranks and after moving the data."""
        total = hashlib.sha256(_canonical(FORMAT_VERSION, self.names))
        for r in self.records:
            total.update(_canonical(r.path, r.height, r.width, r.image_id, len(r.classes)))
            for array in (r.classes, r.boxes_xyxy, r.crowd, r.areas):
                total.update(array.tobytes())
        return total.hexdigest()


def list_entries(spec: DataSpec, split: str) -> list[Entry]:
    """The images of a split ("train", "val" or "test") and where their labels are, sorted by path.

    An item of the split is a folder of images, a list file (``.txt``), a VOC list below ``ImageSets``, or a
    COCO ``.json``. No image is opened. An image named twice is taken once and reported by ``scan``.

    Raises:
        UserError: the split, a folder or a file is missing, or there is no image.
    """
    items: tuple[str, ...] = {"train": spec.train, "val": spec.val, "test": spec.test}[split]
    if not items:
        raise UserError(f"has no '{split}'", where=spec.file, fix=f"add '{split}: images/{split}'")
    folders = Folders()
    entries: list[Entry] = []
    problems: list[Problem] = []
    for item in items:
        try:
            found, bad = _list_item(_resolve(item, spec), spec, split, folders)
        except OSError as error:  # no permission, a name too long, a share that is gone
            reason = error.strerror or str(error)
            fix = f"correct 'path' or '{split}', or make it readable"
            raise UserError(f"{item:.200} cannot be read: {reason}", where=spec.file, fix=fix) from error
        entries += found
        problems += bad
    entries.sort(key=lambda entry: relative_name(entry.image, spec.root))
    unique, repeated = _drop_repeated(entries)
    problems += repeated
    if not unique:
        hint = f"; {problems[0]}" if problems else ""
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(
            f"no image in {', '.join(items)}{hint}",
            where=f"{spec.file}, {split}",
            fix=f"images end in {suffixes}",
        )
    numbered = _with_ids(unique)
    numbered[0] = dataclasses.replace(numbered[0], problems=tuple(problems))
    return numbered


def scan(
    entries: Sequence[Entry], names: Sequence[str], root: Path
) -> tuple[list[Record | None], list[Problem]]:
    """Decode each image and read its labels: a record an entry, None where the image is unusable.

    Any slice of the entries gives that slice of the records, so ranks can share the work.
    """
    records: list[Record | None] = []
    problems: list[Problem] = []
    for entry in entries:
        record, found = _scan_entry(entry, names, root)
        records.append(record)
        problems += entry.problems
        problems += found
    return records, problems


def assemble(root: Path, names: Sequence[str], scanned: Sequence[Record | None]) -> Index:
    """The index of all that ``scan`` found usable.

    Raises:
        UserError: no image is usable, or none has an object: nothing could be learnt or measured.
    """
    records = tuple(record for record in scanned if record is not None)
    if not records:
        raise UserError(
            f"none of {len(scanned)} images is usable",
            where=root,
            fix="see the problems reported for each of them",
        )
    if not any(len(record.classes) for record in records):
        raise UserError(
            f"none of {len(records)} images has a labelled object (the first is {records[0].path})",
            where=root,
            fix="labels of images/a/b.jpg belong in labels/a/b.txt; see also the problems reported",
        )
    return Index(root=root, names=tuple(names), records=records)


class Fingerprint(NamedTuple):
    """Two hashes of a split's files. Moving all of them together changes neither."""

    content: str  # of their names and sizes: equal for copies of a data set on several hosts
    exact: str  # of their times too: names one copy


def fingerprint(entries: Sequence[Entry], spec: DataSpec, split: str) -> Fingerprint:
    """Hash the names, sizes and times of images and label files. Each file is looked at once."""
    files = list(dict.fromkeys(file for entry in entries for file in (entry.image, entry.labels.file)))
    about = _canonical(
        FORMAT_VERSION,
        split,
        spec.names,
        [
            (
                entry.image_id,
                entry.named_in and relative_name(Path(entry.named_in), spec.root),
                entry.named_at,
                [problem.reason for problem in entry.problems],
            )
            for entry in entries
        ],
    )
    content, exact = hashlib.sha256(about), hashlib.sha256(about)
    for file, (size, time_ns) in zip(files, _sizes_and_times(files), strict=True):
        name = relative_name(file, spec.root)
        content.update(os.fsencode(f"{name}\0{size}\0"))
        exact.update(os.fsencode(f"{name}\0{size}\0{time_ns}\0"))
    return Fingerprint(content.hexdigest(), exact.hexdigest())


def relative_name(path: Path, root: Path) -> str:
    """The posix path below root, or the whole path when it is not below."""
    folder = root.as_posix().removesuffix("/") + "/"  # text: ``Path.relative_to`` would take most of a start
    return path.as_posix().removeprefix(folder)


def _resolve(item: str, spec: DataSpec) -> Path:
    path = spec.root / item
    if not path.exists() and item.startswith("../") and (spec.root / item[3:]).exists():
        return spec.root / item[3:]  # Roboflow's files say "../train/images" for the folder beside the file
    return path


def _list_item(path: Path, spec: DataSpec, split: str, folders: Folders) -> tuple[list[Entry], list[Problem]]:
    where = f"{spec.file}, {split}"
    if path.is_dir():
        return yolo.list_folder(path)
    if not path.is_file():
        fix = f"relative paths start at {spec.root}; correct 'path' or '{split}'"
        raise UserError(f"there is no folder or file {path}", where=where, fix=fix)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return coco.list_file(path, spec.root, split, spec.names, folders)
    if suffix != ".txt":
        fix = "give a folder of images, a .txt list, a VOC ImageSets list or a COCO .json"
        raise UserError(f"{path} is none of the known kinds", where=where, fix=fix)
    if voc.is_image_set(path):
        return voc.list_file(path, folders)
    return yolo.list_file(path, spec.root, folders)


def _drop_repeated(entries: Sequence[Entry]) -> tuple[list[Entry], list[Problem]]:
    unique: dict[Path, Entry] = {}
    problems: list[Problem] = []
    for entry in entries:
        first = unique.setdefault(entry.image, entry)
        if first is not entry:
            named_in, named_at = entry.named_in or str(entry.image), entry.named_at
            problems.append(
                Problem(named_in, named_at, f"image {entry.image} is named more than once: taken once")
            )
    return list(unique.values()), problems


def _with_ids(entries: Sequence[Entry]) -> list[Entry]:
    """COCO's ids where every entry has its own, else positions (two COCO files may both start at 0)."""
    stated = [entry.image_id for entry in entries if isinstance(entry.labels, coco.CocoLabels)]
    if len(set(stated)) == len(entries):
        return list(entries)
    return [dataclasses.replace(entry, image_id=i) for i, entry in enumerate(entries)]


def _scan_entry(entry: Entry, names: Sequence[str], root: Path) -> tuple[Record | None, list[Problem]]:
    try:
        height, width = verify_image(entry.image)
    except MissingImageError:
        named_in = entry.named_in or str(entry.image)
        return None, [Problem(named_in, entry.named_at, f"image {entry.image} does not exist")]
    except ImageError as error:
        return None, [Problem(str(entry.image), None, error.reason)]
    labels, problems = entry.labels.read(names, height, width)
    if labels is None:
        return None, problems
    record = Record(
        path=relative_name(entry.image, root),
        height=height,
        width=width,
        classes=labels.classes,
        boxes_xyxy=labels.boxes_xyxy,
        crowd=labels.crowd,
        areas=labels.areas,
        image_id=entry.image_id,
    )
    return record, problems


def _sizes_and_times(files: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """(bytes, ns) of each file, -1 where it cannot be looked at.

    Threads, because a network file system takes as long for many questions at once as for one.
    """
    parts = [files[i : i + FILES_AT_ONCE] for i in range(0, len(files), FILES_AT_ONCE)]
    with ThreadPoolExecutor(THREADS) as threads:
        for found in threads.map(lambda part: [_size_and_time(file) for file in part], parts):
            yield from found


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _canonical(*values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"
