"""Pascal VOC: ``ImageSets/Main/*.txt`` list names of ``Annotations/<name>.xml`` and ``JPEGImages/<name>.*``.

Corners are taken as the numbers that stand there: no pixel is subtracted, floats are kept. Objects marked
``difficult`` are kept as ordinary ones. Sizes come from the image, not from the XML, which is often wrong.
The XML is read event by event; a document type, which is where entity bombs live, is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from xml.parsers import expat

from horovod_yolo.core.class_names import find_names, loose
from horovod_yolo.core.errors import UserError
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
    finite_number,
    is_file_name,
    lines,
    other_classes,
    read_labels,
    read_list,
    settle,
    size_problem,
    too_many,
    too_many_objects,
    unless_all_bad,
    unreadable,
)
from horovod_yolo.data.read import IMAGE_SUFFIXES

_RULES = LabelRules()
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
MOST_NESTED = 200_000
_DEEPEST = 5  # annotation, object, bndbox, xmin, and one more to tell what lies deeper
_TEXT_LIMIT = 1000  # characters of a name or number that are kept


@dataclass(frozen=True)
class VocLabels:
    """The XML file of one image."""

    file: Path
    rules: LabelRules = _RULES

    def read(self, names: Sequence[str], height: int, width: int) -> tuple[Labels | None, list[Problem]]:
        """See ``LabelSource``. Without a sound file the image's objects are unknown, not absent."""
        try:
            data = read_labels(self.file)
        except FileNotFoundError as error:
            return None, [unreadable(self.file, error)]
        except UnreadableError as error:
            return None, [error.problem]
        labels, problems = parse_annotation(data, str(self.file), names, height, width, self.rules)
        if labels is None:
            return None, problems
        return unless_all_bad(labels, problems, self.file, self.rules)


@dataclass
class _Object:
    line: int
    fields: dict[str, str] = field(default_factory=dict)


class _DoctypeError(ValueError):
    """The XML has a document type."""


class _Handler:
    """Collects objects and the stated size while expat walks the file."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.objects: list[_Object] = []
        self.size: dict[str, str] = {}
        self._path: list[str] = []
        self._text: list[str] = []

    def _start(self, tag: str, _attributes: dict[str, str]) -> None:
        self._path.append(tag)
        if len(self._path) > MOST_NESTED:  # the parser's own memory grows with each
            raise ValueError(f"elements are nested over {MOST_NESTED} deep")
        self._text.clear()
        if self._path[1:_DEEPEST] == ["object"] and len(self.objects) <= MAX_OBJECTS:
            self.objects.append(_Object(self.parser.CurrentLineNumber))

    def _end(self, tag: str) -> None:
        # The path below the root decides: a person's <part> has a name and a box of its own.
        path = self._path[1:_DEEPEST]
        self._path.pop()
        text = "".join(self._text).strip()[:_TEXT_LIMIT]
        if path == ["object", "name"] or (path[:2] == ["object", "bndbox"] and len(path) == 3):
            self.objects[-1].fields[tag] = text
        elif path[:1] == ["size"] and len(path) == 2:
            self.size[tag] = text
        self._text.clear()

    def _characters(self, text: str) -> None:
        if len(self._text) < _TEXT_LIMIT:
            self._text.append(text)

    def _doctype(self, *_ignored: object) -> None:
        raise _DoctypeError("a document type (<!DOCTYPE ...>) is not read: it may define entities")


def is_image_set(file: Path) -> bool:
    """Whether a list file lies where VOC keeps its lists."""
    return "ImageSets" in file.parts[-3:-1]


def list_file(file: Path, folders: Folders, rules: LabelRules = _RULES) -> tuple[list[Entry], list[Problem]]:
    """An entry for each name in a VOC list. ``name -1``, as in the lists of one class, names an image too.

    Raises:
        UserError: the list or the folders that belong to it cannot be read.
    """
    base = _base(file)
    for folder in ("Annotations", "JPEGImages"):
        if not (base / folder).is_dir():
            fix = f"a VOC list in {base}/ImageSets needs Annotations and JPEGImages in {base}"
            raise UserError(f"there is no folder {base / folder}", where=file, fix=fix)
    data = read_list(file, MAX_LIST_BYTES, "give a text file with one image name a line")
    annotations = base / "Annotations"
    stems = _stems(base / "JPEGImages", folders)
    entries, problems = [], []
    for number, line in lines(data):
        text = os.fsdecode(line)
        if not is_file_name(text):
            problems.append(Problem(str(file), number, "not the name of an image"))
            if len(problems) >= MAX_PROBLEMS:
                problems.append(too_many(str(file), number))
                break
        else:
            name = _name(text, stems)
            image = base / "JPEGImages" / stems.get(name, f"{name}.jpg")
            if name not in stems:
                image = folders.spelled(image) or image
            xml = annotations / f"{name}.xml"
            labels = VocLabels(xml if folders.hold(xml) else folders.spelled(xml) or xml, rules)
            entries.append(Entry(image, labels, named_in=str(file), named_at=number))
    return entries, problems + _mapped(str(file), {old: 0 for old, _ in rules.class_map})


def parse_annotation(
    data: bytes, file: str, names: Sequence[str], height: int, width: int, rules: LabelRules = _RULES
) -> tuple[Labels | None, list[Problem]]:
    """The content of a VOC XML -> labels in pixels of a (height, width) image, and the objects left out.

    None for the labels when it is no sound XML.
    """
    handler = _Handler()
    try:
        handler.parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        line = handler.parser.CurrentLineNumber
        return None, [Problem(file, line, f"labels cannot be read: {error}")]
    ours = tuple(names)
    others: dict[str, int] = {}
    wanted = {loose(old): old for old, _ in rules.class_map}
    mapped: dict[str, int] = {}
    rows: list[Row] = []
    problems = size_problem(file, _stated_size(handler.size), height, width)
    if len(handler.objects) > MAX_OBJECTS:
        problems.append(too_many_objects(file, handler.objects.pop().line))
    for found in handler.objects:
        name = found.fields.get("name")
        class_id = class_of(name, ours, rules) if name else None
        if name and (old := wanted.get(loose(name))):
            mapped[old] = mapped.get(old, 0) + 1
        if name and class_id is None:
            others[name] = others.get(name, 0) + 1
            continue
        checked = _check_object(found, class_id)
        if isinstance(checked, Row):
            rows.append(checked)
        else:
            problems.append(Problem(file, found.line, checked))
        if len(problems) >= MAX_PROBLEMS:
            problems.append(too_many(file, found.line))
            break
    labels, more = settle(rows, height, width, file)
    return labels, problems + other_classes(file, others, "stranger") + _mapped(file, mapped) + more


def _mapped(file: str, counts: Mapping[str, int]) -> list[Problem]:
    """How many objects the class map has found; 0: a name to look for."""
    return [
        Problem(file, None, f"{count} objects of {old!r:.80} by --class-map", "mapped", old, count)
        for old, count in counts.items()
    ]


def _base(file: Path) -> Path:
    return next(parent.parent for parent in file.parents if parent.name == "ImageSets")


def _stems(folder: Path, folders: Folders) -> dict[str, str]:
    """Name without suffix -> file name. Of two files with one stem the first by name counts."""
    stems: dict[str, str] = {}
    for name in sorted(folders.names(folder)):
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            stems.setdefault(Path(name).stem, name)
    return stems


def _name(text: str, stems: dict[str, str]) -> str:
    if text in stems:
        return text
    first, _, flag = text.rpartition(" ")
    return first.strip() if flag in ("-1", "0", "1") and first.strip() else text


@lru_cache(maxsize=4096)
def class_of(name: str, ours: tuple[str, ...], rules: LabelRules) -> int | None:
    """The class an object's name is; None where it is none of ours."""
    if rules.first_release:
        return next((i for i, own in enumerate(ours) if own.strip() == name), None)
    return find_names((name,), ours, dict(rules.class_map)).ids[0]


def _check_object(found: _Object, class_id: int | None) -> Row | str:
    """The object with its numbers checked, or why it is left out."""
    if class_id is None:
        return "object has no name"
    corners = []
    for corner in _CORNERS:
        value = finite_number(found.fields.get(corner, ""))
        if value is None:
            return f"{corner} {found.fields.get(corner, 'is missing')[:60]!r} is not a finite number"
        corners.append(value)
    x1, y1, x2, y2 = corners
    if x2 <= x1 or y2 <= y1:
        return f"box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) has no area: max must exceed min"
    return Row(class_id, (x1, y1, x2, y2), line=found.line)


def _stated_size(size: dict[str, str]) -> tuple[int, int] | None:
    height, width = finite_number(size.get("height", "")), finite_number(size.get("width", ""))
    return None if height is None or width is None else (int(height), int(width))
