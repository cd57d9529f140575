"""What the readers of label formats share: problems, labels of one image, entries of a set.

A reader has two halves. Listing is cheap and the same on every rank: it gives one ``Entry`` an image and
looks into no image. Reading an entry's labels is the costly half, which ranks divide among themselves; the
entry's ``LabelSource`` knows how. Parsers take bytes, so that tests can feed them anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core import boxes
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Floats, Ints
from horovod_yolo.io.files import read_bytes

MAX_LABEL_BYTES = 16 << 20  # of one image; the longest honest ones are a few MB of polygons
MAX_LIST_BYTES = 1 << 30  # of a list of images; ten million paths of a hundred letters
MAX_OBJECTS = 100_000  # in one image
MAX_PROBLEMS = 1000  # of one label file or list: more means it is no such file at all
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTES_AT_ONCE = 1 << 20


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


def read_labels(file: Path) -> bytes:
    """The content of one image's label file.

    Raises:
        FileNotFoundError: there is none.
        UnreadableError: it cannot be read, with the problem to report.
    """
    try:
        return read_bytes(file, MAX_LABEL_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(unreadable(file, error)) from error


def unreadable(file: Path, error: object) -> Problem:
    """The labels of an image are unknown, which is not the same as none."""
    reason = getattr(error, "strerror", None) or error
    return Problem(str(file), None, f"labels cannot be read: {reason}")


class UnreadableError(ValueError):
    """Labels that cannot be read. ``problem`` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def read_list(file: Path, limit: int, fix: str) -> bytes:
    """The content of a file that names the images of a set.

    Raises:
        UserError: it cannot be read, or is longer than ``limit`` bytes.
    """
    try:
        return read_bytes(file, limit)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=file, fix=fix) from error


def lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1, and the lines that are not blank. All three kinds of line end count."""
    start = len(_BYTE_ORDER_MARK) if data.startswith(_BYTE_ORDER_MARK) else 0
    number = 0
    while start < len(data):
        end = _LINE_END.search(data, start + _BYTES_AT_ONCE)  # lists are long: not all lines at once
        stop = end.end() if end else len(data)
        for line in data[start:stop].splitlines():
            number += 1
            if stripped := line.strip():
                yield number, stripped
        start = stop


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


def too_many_objects(file: str, line: int | None) -> Problem:
    """Ends the list of an image's objects at MAX_OBJECTS."""
    return Problem(file, line, f"{MAX_OBJECTS} objects in one image: the rest of the file is left out")


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
