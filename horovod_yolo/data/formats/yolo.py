"""YOLO txt labels: a folder of images, or a list file, with one text file of rows an image.

A row is ``class cx cy w h``, all but the class as a share of the image's size, or
``class x1 y1 x2 y2 x3 y3 ...``, a polygon, which becomes its bounding box. The label file of
``.../images/a/b.jpg`` is ``.../labels/a/b.txt`` (the last folder called ``images`` counts); without such a
folder it lies beside the image. An image without label file is background.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from horovod_yolo.data.formats import (
    MAX_LIST_BYTES,
    MAX_OBJECTS,
    MAX_PROBLEMS,
    Entry,
    Folders,
    Labels,
    Problem,
    Row,
    UnreadableError,
    is_file_name,
    lines,
    read_labels,
    read_list,
    settle,
    too_many,
    too_many_objects,
)
from horovod_yolo.data.read import IMAGE_SUFFIXES

OVERHANG = 1e-3  # how far values may lie outside 0..1: rounding in exporters, no more
_SUFFIXES = tuple(IMAGE_SUFFIXES)


@dataclass(frozen=True)
class YoloLabels:
    """The text file of one image."""

    file: Path

    def read(self, names: Sequence[str], height: int, width: int) -> tuple[Labels | None, list[Problem]]:
        """See ``LabelSource``. A missing file means that the image has no objects."""
        try:
            data = read_labels(self.file)
        except FileNotFoundError:
            data = b""
        except UnreadableError as error:
            return None, [error.problem]
        return parse_labels(data, str(self.file), len(names), height, width)


class _BadRowError(ValueError):
    """A row that is left out; the text says why."""


def list_folder(folder: Path) -> tuple[list[Entry], list[Problem]]:
    """An entry for each image in a folder and the folders below it. Hidden files do not count."""
    problems: list[Problem] = []

    def note(error: OSError) -> None:
        reason = f"folder cannot be read: {error.strerror or error}"
        problems.append(Problem(str(error.filename or folder), None, reason))

    entries = []
    for here, names in _folders_below(folder, note):
        labels = label_path(here / "of.jpg").parent  # once a folder: paths are slow, and sets are large
        entries += [
            Entry(here / name, YoloLabels(labels / f"{name[: name.rindex('.')]}.txt"))
            for name in names
            if name.lower().endswith(_SUFFIXES)
        ]
    return entries, problems


def list_file(file: Path, root: Path, folders: Folders) -> tuple[list[Entry], list[Problem]]:
    """An entry for each line of a list file.

    Paths are absolute, relative to the list file's folder (``./`` in front or not), or relative to ``root``.

    Raises:
        UserError: the list cannot be read.
    """
    data = read_list(file, MAX_LIST_BYTES, "give a text file with one image path a line")
    entries, problems = [], []
    for number, line in lines(data):
        text = os.fsdecode(line)
        if not is_file_name(text) or Path(text).suffix.lower() not in IMAGE_SUFFIXES:
            problems.append(Problem(str(file), number, f"not an image file name: {_shown(line)}"))
            if len(problems) >= MAX_PROBLEMS:
                problems.append(too_many(str(file), number))
                break
            continue
        image = _locate(text.replace("\\", "/"), file.parent, root, folders)
        entries.append(Entry(image, YoloLabels(label_path(image)), named_in=str(file), named_at=number))
    return entries, problems


def label_path(image: Path) -> Path:
    """An image's label file: the last folder ``images`` becomes ``labels``, the suffix ``.txt``."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def parse_labels(
    data: bytes, file: str, num_classes: int, height: int, width: int
) -> tuple[Labels, list[Problem]]:
    """The content of a label file -> labels in pixels of a (height, width) image, and the rows left out."""
    rows: list[Row] = []
    problems: list[Problem] = []
    for number, line in lines(data):
        if len(rows) >= MAX_OBJECTS:
            problems.append(too_many_objects(file, number))
            break
        try:
            class_id, (x1, y1, x2, y2) = _parse_row(line.split(), num_classes)
        except _BadRowError as error:
            problems.append(Problem(file, number, str(error)))
            if len(problems) >= MAX_PROBLEMS:
                problems.append(too_many(file, number))
                break
            continue
        rows.append(Row(class_id, (x1 * width, y1 * height, x2 * width, y2 * height), line=number))
    labels, more = settle(rows, height, width, file)
    return labels, sorted(problems + more, key=lambda problem: problem.line or 0)


def _folders_below(folder: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str]]]:
    """Folders of a tree, each with the names in it that are not hidden, sorted.

    Linked folders are entered, each real folder once: loops of links end.
    """
    visited: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(here) as found:
                names = {entry.name: _is_folder(entry) for entry in found if not entry.name.startswith(".")}
        except OSError as error:
            onerror(error)
            continue
        waiting += [here / name for name in sorted(names, reverse=True) if names[name]]
        yield here, sorted(name for name in names if not names[name])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _locate(text: str, beside: Path, root: Path, folders: Folders) -> Path:
    path = Path(text)
    if path.is_absolute():
        return path
    first = beside / path
    if not text.startswith("./") and not folders.hold(first) and folders.hold(root / path):
        return root / path
    return first


def _parse_row(columns: Sequence[bytes], num_classes: int) -> tuple[int, tuple[float, float, float, float]]:
    """Columns -> class and corners as shares of the image."""
    if len(columns) != 5 and (len(columns) < 7 or len(columns) % 2 == 0):
        raise _BadRowError(
            f"{len(columns)} columns: a row is 'class cx cy w h' or 'class x1 y1 x2 y2 x3 y3 ...'"
        )
    numbers = [_number(column) for column in columns]
    class_id, values = numbers[0], numbers[1:]
    if not class_id.is_integer():
        raise _BadRowError(f"class {_shown(columns[0])} is not a whole number")
    if not 0 <= class_id < num_classes:
        raise _BadRowError(f"class {_shown(columns[0])} is not in 0..{num_classes - 1}")
    if len(values) == 4 and min(values[2:]) <= 0:
        raise _BadRowError(f"width {values[2]:g} and height {values[3]:g} must be positive")
    outside = [value for value in values if not -OVERHANG <= value <= 1 + OVERHANG]
    if outside:
        raise _BadRowError(
            f"{outside[0]:g} is outside 0..1: values are shares of the image's size, not pixels"
        )
    return int(class_id), _corners(values)


def _corners(values: Sequence[float]) -> tuple[float, float, float, float]:
    if len(values) == 4:
        cx, cy, w, h = values
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    xs, ys = values[0::2], values[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _number(column: bytes) -> float:
    try:
        value = float(column)
    except ValueError:
        value = None
    if (
        value is None or b"_" in column
    ):  # float() takes 1_000, which is Python's habit and nobody's file format
        raise _BadRowError(f"{_shown(column)} is not a number")
    if not math.isfinite(value):
        raise _BadRowError(f"{_shown(column)} is not a finite number")
    return value


def _shown(raw: bytes) -> str:
    """User's bytes for a message: printable, one line, short."""
    text = raw.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 60 else text[:57] + "...")
