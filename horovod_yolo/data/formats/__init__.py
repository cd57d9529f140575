"""What the readers of label formats share: problems, labels of one image, entries of a set.

A reader has two halves. Listing is cheap and the same on every rank: it gives one ``Entry`` an image and
looks into no image. Reading an entry's labels is the costly half, which ranks divide among themselves; the
entry's ``LabelSource`` knows how. Parsers take bytes, so that tests can feed them anything.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core import boxes
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Floats, Ints
from horovod_yolo.data.formats.rules import LabelRules, Numbering
from horovod_yolo.data.formats.text import lines, not_text
from horovod_yolo.io.files import read_bytes

__all__ = ["Entry", "Folders", "LabelRules", "LabelSource", "Labels", "Numbering", "Problem", "Row", "lines"]

MAX_LABEL_BYTES = 16 << 20  # of one image; the longest honest ones are a few MB of polygons
MAX_LIST_BYTES = 1 << 30  # of a list of images; ten million paths of a hundred letters
MAX_OBJECTS = 100_000  # in one image
MAX_PROBLEMS = 1000  # of one label file or list: more means it is no such file at all

# What became of it.
# "left out": an image or object that cannot be used. "bad class": a row whose class number is none of ours.
# "other class": objects left out because the name of their class is none of ours; "stranger": the same where
# only the whole set can tell whether that is a mistake. "note": nothing is left out. Not to be shown one by
# one: "mapped", objects whose name is in the class map; "pose", polygons that may be boxes with key points.
ProblemKind = Literal["left out", "bad class", "other class", "stranger", "note", "mapped", "pose"]


@dataclass(frozen=True)
class Problem:
    """Something in the user's files that was left out, or that they should know of.

    ``about`` is the class as the files have it, and ``count`` how many objects or images are meant.
    """

    file: str
    line: int | None
    reason: str
    kind: ProblemKind = "left out"
    about: str = ""
    count: int = 1

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


@dataclass(frozen=True, slots=True)  # there are millions
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
        self._spellings: dict[Path, dict[str, list[str]]] = {}

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

    def spelled(self, path: Path) -> Path | None:
        """The one file in the path's folder whose name is the same but for case, accents or percent signs."""
        same = self._alike(path.parent).get(alike(path.name), ())
        return path.with_name(same[0]) if len(same) == 1 else None

    def _alike(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._spellings:
            found = self._spellings[folder] = {}
            for name in sorted(self.names(folder)):
                found.setdefault(alike(name), []).append(name)
        return self._spellings[folder]


def alike(name: str) -> str:
    """What a file's name has in common with its other spellings: case, composed accents, percent signs."""
    return unicodedata.normalize("NFC", unquote(name, errors="surrogateescape")).casefold()


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
        data = read_bytes(file, limit)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=file, fix=fix) from error
    if file.suffix.lower() == ".txt" and (reason := not_text(data)):
        raise UserError(f"cannot be read: {reason}", where=file, fix=fix)
    return data


def finite_number(text: str | bytes) -> float | None:
    """What a file means by a text; None where that is no finite number.

    ``float()`` takes 1_000, which is Python's habit and nobody's file format.
    """
    try:
        value = float(text)
    except ValueError:
        return None
    underscored = b"_" in text if isinstance(text, bytes) else "_" in text
    return value if math.isfinite(value) and not underscored else None


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


def size_problem(file: str, stated: tuple[int, int] | None, height: int, width: int) -> list[Problem]:
    """A note, not a reason to leave anything out, when labels were made for an image of another size."""
    if stated is None or min(stated) <= 0 or stated == (height, width):
        return []
    sizes = f"it says that the image is {stated[1]}x{stated[0]}, which is {width}x{height}"
    return [Problem(file, None, f"{sizes}: its boxes are taken as pixels of the image", "note")]


def other_classes(file: str, counts: Mapping[str, int], kind: ProblemKind = "other class") -> list[Problem]:
    """Objects left out because the name of their class is none of ours."""
    return [
        Problem(
            file,
            None,
            f"{count} objects of {name!r:.80}, which is none of the classes",
            kind,
            name,
            count,
        )
        for name, count in counts.items()
    ]


def unless_all_bad(
    labels: Labels, problems: list[Problem], file: Path, rules: LabelRules, lost: int = 0
) -> tuple[Labels | None, list[Problem]]:
    """The labels; none where every object of the image had to be left out: it is no background.

    ``lost`` are objects that nobody could hand to ``labels``.
    """
    bad = [problem for problem in problems if problem.kind == "left out"]
    if len(labels.classes) or not (bad or lost) or rules.first_release:
        return labels, problems
    return None, [*problems, Problem(str(file), None, "no object of the image is usable: it is left out too")]


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
