"""YOLO txt labels: a folder of images, or a list file, with one text file of rows an image.

A row is ``class cx cy w h``, all but the class as a share of the image's size, or
``class x1 y1 x2 y2 x3 y3 ...``, a polygon, which becomes its bounding box. Where ``kpt_shape`` says that key
points follow the box, they are passed over. Where a label file is: `label_files.py`. An image without label
file is background.
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
    LabelRules,
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
    unless_all_bad,
    unreadable,
)
from horovod_yolo.data.formats.label_files import LabelFinder, label_path
from horovod_yolo.data.formats.text import not_text
from horovod_yolo.data.read import IMAGE_SUFFIXES

MAX_COLUMNS = 100_001  # of a row: a polygon of 50 000 corners
OVERHANG = 1e-3  # how far values may lie outside 0..1: rounding in exporters, no more
_SUFFIXES = tuple(IMAGE_SUFFIXES)
_RULES = LabelRules()


@dataclass(frozen=True, slots=True)
class YoloLabels:
    """The text file of one image."""

    file: Path
    rules: LabelRules = _RULES

    def read(self, names: Sequence[str], height: int, width: int) -> tuple[Labels | None, list[Problem]]:
        """See ``LabelSource``. A missing file means that the image has no objects."""
        try:
            data = read_labels(self.file)
        except FileNotFoundError:
            data = b""
        except UnreadableError as error:
            return None, [error.problem]
        if (reason := not_text(data)) and not self.rules.first_release:
            return None, [unreadable(self.file, reason)]
        labels, problems = parse_labels(data, str(self.file), len(names), height, width, self.rules)
        return unless_all_bad(labels, problems, self.file, self.rules)


class _BadRowError(ValueError):
    """A row that is left out; the text says why."""


class _BadClassError(_BadRowError):
    """A row whose class is none of ours."""


def list_folder(
    folder: Path, root: Path, folders: Folders, class_names: Sequence[str], rules: LabelRules
) -> tuple[list[Entry], list[Problem]]:
    """An entry for each image in a folder and the folders below it. Hidden files do not count."""
    problems: list[Problem] = []

    def note(error: OSError) -> None:
        reason = f"folder cannot be read: {error.strerror or error}"
        problems.append(Problem(str(error.filename or folder), None, reason))

    entries = []
    finder = LabelFinder(root, folders)
    for here, names in _folders_below(folder, note):
        images = [name for name in names if name.lower().endswith(_SUFFIXES)]
        if rules.first_release:
            labels = label_path(here / "of.jpg").parent  # once a folder: paths are slow, and sets are large
            found = [labels / f"{name[: name.rindex('.')]}.txt" for name in images]
        else:
            found = finder.of_folder(here, images)
        entries += [
            Entry(here / name, YoloLabels(file, rules)) for name, file in zip(images, found, strict=True)
        ]
    if not rules.first_release:
        problems += [*finder.remarks(str(folder), strays=True), *finder.class_lists(class_names)]
    return entries, problems


def list_file(
    file: Path, root: Path, folders: Folders, class_names: Sequence[str], rules: LabelRules
) -> tuple[list[Entry], list[Problem]]:
    """An entry for each line of a list file.

    Paths are absolute, relative to the list file's folder (``./`` in front or not), or relative to ``root``.

    Raises:
        UserError: the list cannot be read.
    """
    data = read_list(file, MAX_LIST_BYTES, "give a text file with one image path a line")
    entries, problems = [], []
    finder = LabelFinder(root, folders)
    for number, line in lines(data):
        text = os.fsdecode(line)
        if not is_file_name(text) or Path(text).suffix.lower() not in IMAGE_SUFFIXES:
            problems.append(Problem(str(file), number, f"not an image file name: {shown(line)}"))
            if len(problems) >= MAX_PROBLEMS:
                problems.append(too_many(str(file), number))
                break
            continue
        image = locate(text.replace("\\", "/"), file.parent, root, folders)
        labels = label_path(image) if rules.first_release else finder.of_image(image)
        entries.append(Entry(image, YoloLabels(labels, rules), named_in=str(file), named_at=number))
    if not rules.first_release:
        problems += [*finder.remarks(str(file), strays=False), *finder.class_lists(class_names)]
    return entries, problems


def parse_labels(
    data: bytes, file: str, num_classes: int, height: int, width: int, rules: LabelRules = _RULES
) -> tuple[Labels, list[Problem]]:
    """The content of a label file -> labels in pixels of a (height, width) image, and the rows left out."""
    rows: list[Row] = []
    problems: list[Problem] = []
    poses: set[int] = set()
    for number, line in lines(data):
        if len(rows) >= MAX_OBJECTS:
            problems.append(too_many_objects(file, number))
            break
        try:
            columns = line.split()
            class_id, values = _parse_row(columns, num_classes, rules)
        except _BadRowError as error:
            about = _short(columns[0]) if isinstance(error, _BadClassError) else ""
            problems.append(Problem(file, number, str(error), "bad class" if about else "left out", about))
            if len(problems) >= MAX_PROBLEMS:
                problems.append(too_many(file, number))
                break
            continue
        x1, y1, x2, y2 = _corners(values)
        rows.append(Row(class_id, (x1 * width, y1 * height, x2 * width, y2 * height), line=number))
        if not (rules.keypoints or rules.first_release or 0 in poses):  # 0: one row that is no such box
            poses.add(_points_of_two(values))
    if len(poses) == 1 and (points := poses.pop()):
        reason = f"{len(rows)} polygons may be boxes with {points} key points"
        problems.append(Problem(file, None, reason, "pose", str(points), len(rows)))
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


def locate(text: str, beside: Path, root: Path, folders: Folders) -> Path:
    """The image that a list in the folder ``beside`` calls ``text``; where there is none, the likeliest."""
    path = Path(text)
    places = [path] if path.is_absolute() else [beside / path]
    if not path.is_absolute() and not text.startswith("./"):
        places.append(root / path)
    for place in places:
        if folders.hold(place):
            return place
    return next((found for place in places if (found := folders.spelled(place))), places[0])


def _parse_row(columns: Sequence[bytes], num_classes: int, rules: LabelRules) -> tuple[int, list[float]]:
    """Columns -> class, and a box or polygon as shares of the image."""
    if rules.keypoints and len(columns) == 5 + rules.keypoints[0] * rules.keypoints[1]:
        columns = columns[:5]
    _require_columns(columns, rules)
    numbers = _numbers(columns)
    class_id, values = numbers[0], numbers[1:]
    if not class_id.is_integer():
        raise _BadRowError(f"class {shown(columns[0])} is not a whole number")
    if not 0 <= class_id < num_classes:
        raise _BadClassError(f"class {shown(columns[0])} is not in 0..{num_classes - 1}")
    if not rules.first_release and (points := _hidden_keypoints(values)):
        shape = f"kpt_shape: [{points}, 3]"
        raise _BadRowError(
            f"{len(columns)} columns look like a box with {points} key points: write '{shape}' into data.yaml"
        )
    if len(values) == 4 and min(values[2:]) <= 0:
        raise _BadRowError(f"width {values[2]:g} and height {values[3]:g} must be positive")
    if min(values) < -OVERHANG or max(values) > 1 + OVERHANG:
        outside = next(value for value in values if not -OVERHANG <= value <= 1 + OVERHANG)
        raise _BadRowError(f"{outside:g} is outside 0..1: values are shares of the image's size, not pixels")
    return int(class_id), values


def _require_columns(columns: Sequence[bytes], rules: LabelRules) -> None:
    count = len(columns)
    if count > MAX_COLUMNS:
        raise _BadRowError(f"{count} columns: more than {MAX_COLUMNS} are not read")
    if rules.keypoints and count != 5:
        points, numbers = rules.keypoints
        raise _BadRowError(
            f"{count} columns: with kpt_shape [{points}, {numbers}] a row is 'class cx cy w h', then "
            f"{points * numbers} numbers of key points"
        )
    if count != 5 and (count < 7 or count % 2 == 0):
        hint = ", separated by spaces" if any(b"," in column or b";" in column for column in columns) else ""
        raise _BadRowError(
            f"{count} columns: a row is 'class cx cy w h' or 'class x1 y1 x2 y2 x3 y3 ...'{hint}"
        )


def _hidden_keypoints(values: Sequence[float]) -> int:
    """How many key points (x, y, 0 to 2) there seem to be behind a box; 0: it may be a polygon.

    Each third number would be a corner of a polygon that lies on the image's very edge, and all its other
    corners in a box that its first two make.
    """
    if len(values) < 7 or len(values) % 3 != 1 or not {0.0, 1.0, 2.0}.issuperset(values[6::3]):
        return 0
    points = [*zip(values[4::3], values[5::3], values[6::3], strict=True)]
    return len(points) if _are_in_box([(x, y) for x, y, seen in points if seen], values[:4]) else 0


def _points_of_two(values: Sequence[float]) -> int:
    """How many key points (x, y) there may be behind a box; 0: none. Many a polygon looks so as well."""
    if len(values) < 6:
        return 0
    points = [*zip(values[4::2], values[5::2], strict=True)]
    hidden = (0.0, 0.0)
    return len(points) if _are_in_box([point for point in points if point != hidden], values[:4]) else 0


def _are_in_box(points: Sequence[tuple[float, float]], box: Sequence[float]) -> bool:
    """Whether (cx, cy, w, h) is a box in the image, and all points lie in it or a tenth beyond its sides."""
    cx, cy, w, h = box
    corners = _corners(box)
    if min(w, h) <= 0 or min(corners) < -OVERHANG or max(corners) > 1 + OVERHANG:
        return False
    across, down = 0.6 * w + OVERHANG, 0.6 * h + OVERHANG
    return all(abs(x - cx) <= across and abs(y - cy) <= down for x, y in points)


def _corners(values: Sequence[float]) -> tuple[float, float, float, float]:
    if len(values) == 4:
        cx, cy, w, h = values
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    xs, ys = values[0::2], values[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _numbers(columns: Sequence[bytes]) -> list[float]:
    """All of a row at once, for there may be very many; one by one to say which of them is none."""
    try:
        values = [*map(float, columns)]
    except ValueError:
        values = [math.nan]
    if all(map(math.isfinite, values)) and b"_" not in b" ".join(columns):
        return values
    return [_number(column) for column in columns]


def _number(column: bytes) -> float:
    try:
        value = float(column)
    except ValueError:
        value = None
    if (
        value is None or b"_" in column
    ):  # float() takes 1_000, which is Python's habit and nobody's file format
        raise _BadRowError(f"{shown(column)} is not a number")
    if not math.isfinite(value):
        raise _BadRowError(f"{shown(column)} is not a finite number")
    return value


def shown(raw: bytes) -> str:
    """User's bytes for a message: printable, one line, short."""
    return repr(_short(raw))


def _short(raw: bytes) -> str:
    text = raw.decode("utf-8", errors="replace")
    return text if len(text) <= 60 else text[:57] + "..."
