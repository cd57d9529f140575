"""Annotation lists, as YOLOv3 trainers have them: a line names an image and its boxes.

    images/a.jpg 10,20,110,220,0 5,5,60,80,2

A box is ``x1,y1,x2,y2,class``, corners in pixels of the upright image; spaces stand between boxes only. A
line without boxes is background, and an image that several lines name has the boxes of all of them. Paths
are those of other lists: absolute, relative to the list's folder, or to the data set's root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    finite_number,
    is_file_name,
    lines,
    read_list,
    settle,
    too_many,
    too_many_objects,
    unless_all_bad,
)
from horovod_yolo.data.formats.yolo import locate, shown
from horovod_yolo.data.read import IMAGE_SUFFIXES

LOOKED_AT = 1 << 20  # bytes of a list that tell what it is
_BOX = re.compile(rb"[ \t][-+.\deE]+(?:,[-+.\deE]+){3,}(?!\S)")  # of four numbers: its class may be missing
_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))
_LINE = re.compile(rf"(.*(?:{_SUFFIXES}))(?:[ \t]+(.*))?".encode(), re.IGNORECASE | re.DOTALL)
_RULES = LabelRules()


@dataclass(frozen=True, slots=True)
class ListLabels:
    """The boxes of one image: (line, text) of each."""

    file: Path
    boxes: tuple[tuple[int, bytes], ...]
    rules: LabelRules = _RULES

    def read(self, names: Sequence[str], height: int, width: int) -> tuple[Labels | None, list[Problem]]:
        """See ``LabelSource``."""
        rows: list[Row] = []
        problems: list[Problem] = []
        for line, text in self.boxes:
            if len(rows) >= MAX_OBJECTS:
                problems.append(too_many_objects(str(self.file), line))
                break
            found = _row(text, line, len(names), str(self.file))
            if isinstance(found, Row):
                rows.append(found)
                continue
            problems.append(found)
            if len(problems) >= MAX_PROBLEMS:
                problems.append(too_many(str(self.file), line))
                break
        labels, more = settle(rows, height, width, str(self.file))
        return unless_all_bad(labels, problems + more, self.file, self.rules)


def is_annotated(file: Path) -> bool:
    """Whether a list has boxes behind the names of its images; of a long one the beginning tells.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        return _BOX.search(stream.read(LOOKED_AT)) is not None


def list_file(
    file: Path, root: Path, folders: Folders, rules: LabelRules = _RULES
) -> tuple[list[Entry], list[Problem]]:
    """An entry for each image of an annotation list.

    Raises:
        UserError: the list cannot be read.
    """
    data = read_list(file, MAX_LIST_BYTES, "give a text file with an image and its boxes a line")
    images: dict[Path, _Image] = {}
    problems: list[Problem] = []
    for number, line in lines(data):
        found = _LINE.fullmatch(line)
        if found is None or not is_file_name(os.fsdecode(found[1])):
            reason = f"not an image file name with boxes behind it: {shown(line)}"
            problems.append(Problem(str(file), number, reason))
            if len(problems) >= MAX_PROBLEMS:
                problems.append(too_many(str(file), number))
                break
            continue
        path = locate(os.fsdecode(found[1]).replace("\\", "/"), file.parent, root, folders)
        image = images.setdefault(path, _Image(number))
        image.boxes += [(number, text) for text in (found[2] or b"").split()]
    entries = [
        Entry(path, ListLabels(file, tuple(image.boxes), rules), named_in=str(file), named_at=image.line)
        for path, image in images.items()
    ]
    return entries, problems


@dataclass
class _Image:
    line: int  # the first that names it
    boxes: list[tuple[int, bytes]] = field(default_factory=list)


def _row(text: bytes, line: int, num_classes: int, file: str) -> Row | Problem:
    columns = text.split(b",")
    if len(columns) != 5:
        return Problem(file, line, f"box {shown(text)} is not x1,y1,x2,y2,class without spaces")
    numbers = [finite_number(column) for column in columns]
    if None in numbers:
        return Problem(file, line, f"box {shown(text)} is not five finite numbers")
    x1, y1, x2, y2, class_id = (number for number in numbers if number is not None)
    if not class_id.is_integer():
        return Problem(file, line, f"class {shown(columns[4])} is not a whole number")
    if not 0 <= class_id < num_classes:
        reason = f"class {shown(columns[4])} is not in 0..{num_classes - 1}"
        return Problem(file, line, reason, "bad class", columns[4].decode(errors="replace")[:60])
    if x2 <= x1 or y2 <= y1:
        return Problem(file, line, f"box {shown(text)} has no area: x2 and y2 must exceed x1 and y1")
    return Row(int(class_id), (x1, y1, x2, y2), line=line, name=f"box {shown(text)}")
