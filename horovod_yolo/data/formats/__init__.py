"""What the readers of label formats share: problems, labels of one image, entries of a set.

A reader has two halves. Listing is cheap and the same on every rank: it gives one ``Entry`` an image and
looks into no image. Reading an entry's labels is the costly half, which ranks divide among themselves; the
entry's ``LabelSource`` knows how. Parsers take bytes, so that tests can feed them anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from horovod_yolo import boxes
from horovod_yolo.types import Floats, Ints

MAX_LABEL_BYTES = 16 << 20  # of one image; the longest honest ones are a few MB of polygons
MAX_PROBLEMS = 1000  # of one label file: more means it is no label file at all


@dataclass(frozen=True)
class Problem:
    """Something in the user's files that was left out, or that they should know of."""

    file: str
    line: int | None
    reason: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Labels:
    """The objects of one image. n may be 0."""

    classes: Ints  # (n,)
    boxes_xyxy: Floats  # (n, 4) pixels of the upright image, clipped to it
    crowd: NDArray[np.bool_]  # (n,)
    areas: Floats  # (n,) pixels


@dataclass(frozen=True)
class Row:
    """One object as a file has it: checked number by number, not yet against the image."""

    class_id: int
    box_xyxy: tuple[float, float, float, float]  # pixels, finite
    line: int | None = None
    name: str = "box"  # what to call it in a problem
    crowd: bool = False
    area: float | None = None  # where the file states one


class LabelSource(Protocol):
    """Where the labels of one image come from. Cheap to make, can be pickled."""

    @property
    def file(self) -> Path:
        """The file that holds them; it may be missing where the format allows."""

    def read(self, names: Sequence[str], height: int, width: int) -> tuple[Labels | None, list[Problem]]:
        """The labels for an upright image of this size in pixels; None when they cannot be known."""


@dataclass(frozen=True)
class Entry:
    """One image of a set, before anything has looked into it."""

    image: Path
    labels: LabelSource
    image_id: int | str = 0
    named_in: str = ""  # the list file that names the image, "" when a folder holds it
    named_at: int | None = None  # its line there
    problems: tuple[Problem, ...] = ()  # found while listing; the first entry carries them to the report


class Folders:
    """Which names are in which folder, each folder listed once.

    On network file systems a listing costs little more than one ``stat``, and sets have a million files.
    """

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def names(self, folder: Path) -> frozenset[str]:
        """The names in a folder; none when it cannot be listed."""
        if folder not in self._names:
            try:
                with os.scandir(folder) as found:
                    self._names[folder] = frozenset(entry.name for entry in found)
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]

    def hold(self, path: Path) -> bool:
        """Whether the path's folder has its name."""
        return path.name in self.names(path.parent)


def is_file_name(text: str) -> bool:
    """Whether the text can name a file at all: not empty, no NUL, encodable."""
    try:
        return bool(text.strip()) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it is missing, unreadable, no regular file or longer than ``limit`` bytes.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    if status.st_size > limit:
        raise OSError(f"{status.st_size >> 20} MiB is more than the {limit >> 20} MiB that are read")
    return path.read_bytes()


def settle(rows: Iterable[Row], height: int, width: int, file: str) -> tuple[Labels, list[Problem]]:
    """Clip rows to the image; leave out what has no area in it, and what repeats an earlier row exactly."""
    listed = list(rows)
    raw = np.array([row.box_xyxy for row in listed], dtype=np.float64).reshape(-1, 4)
    clipped = np.clip(raw, 0, [width, height, width, height]).astype(np.float32)
    kept: list[int] = []
    seen: dict[tuple[int, bool, bytes], Row] = {}
    problems: list[Problem] = []
    for i, row in enumerate(listed):
        x1, y1, x2, y2 = clipped[i].tolist()
        key = (row.class_id, row.crowd, clipped[i].tobytes())
        if x2 <= x1 or y2 <= y1:
            problems.append(
                Problem(file, row.line, f"{row.name} has no area inside the {width}x{height} image")
            )
        elif key in seen:
            problems.append(Problem(file, row.line, f"{row.name} repeats {_reference(seen[key])}"))
        else:
            seen[key] = row
            kept.append(i)
    return _labels([listed[i] for i in kept], clipped[kept]), problems


def too_many(file: str, line: int | None) -> Problem:
    """Ends the list of a file's problems at MAX_PROBLEMS."""
    return Problem(file, line, f"{MAX_PROBLEMS} bad rows: the rest of the file is left out")


def class_ids(names: Sequence[str]) -> dict[str, int]:
    """Class name -> id; of equal names the first counts."""
    ids: dict[str, int] = {}
    for i, name in enumerate(names):
        ids.setdefault(name.strip(), i)
    return ids


def size_problem(file: str, stated: tuple[int, int] | None, height: int, width: int) -> list[Problem]:
    """A note, not a reason to leave anything out, when labels were made for an image of another size."""
    if stated is None or min(stated) <= 0 or stated == (height, width):
        return []
    reason = (
        f"labels are for {stated[1]}x{stated[0]}, the image is {width}x{height}: kept, as pixels of the image"
    )
    return [Problem(file, None, reason)]


def _reference(row: Row) -> str:
    return row.name if row.line is None else f"line {row.line}"


def _labels(rows: Sequence[Row], boxes_xyxy: Floats) -> Labels:
    areas = boxes.area(boxes_xyxy)
    for i, row in enumerate(rows):
        if row.area is not None:
            areas[i] = row.area
    return Labels(
        classes=np.array([row.class_id for row in rows], dtype=np.int64),
        boxes_xyxy=boxes_xyxy,
        crowd=np.array([row.crowd for row in rows], dtype=np.bool_),
        areas=areas,
    )
