"""COCO JSON labels: one file for a whole set.

An image's file is looked for in this order, and all files of a set need not lie in one of them:

1. the JSON's own folder (Roboflow's exports)
2. the set's root (``path:`` in data.yaml), then ``images/`` below it
3. below the JSON's folder, its parent and the root: ``images/<name>/`` and ``<name>/``, where name is
   what the JSON's name says (``train2017`` of ``instances_train2017.json``), then the split

Categories become classes by name, case and spaces ignored: see `core.class_names`. A category without
objects, such as the head of all others that Roboflow writes, need be none of the classes.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from horovod_yolo.core.class_names import loose
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import (
    Entry,
    Folders,
    LabelRules,
    Labels,
    Problem,
    Row,
    is_file_name,
    other_classes,
    read_list,
    settle,
    size_problem,
    unless_all_bad,
)
from horovod_yolo.data.formats.coco_categories import Key, key_of, map_categories, text_of
from horovod_yolo.data.read import MAX_PIXELS

_RULES = LabelRules()
MAX_JSON_BYTES = 4 << 30  # COCO's largest is 0.5 GB, LVIS's 1.1 GB


@dataclass(frozen=True)
class CocoRow:
    """What matters of one annotation, unchecked."""

    name: str
    class_id: int
    bbox_ltwh: object
    area: object
    crowd: bool


@dataclass(frozen=True)
class CocoLabels:
    """The annotations of one image."""

    file: Path
    rows: tuple[CocoRow, ...]
    stated_size: tuple[int, int] | None = None  # (height, width)
    rules: LabelRules = _RULES
    lost: int = 0

    def read(self, names: Sequence[str], height: int, width: int) -> tuple[Labels | None, list[Problem]]:
        """See ``LabelSource``. The classes were mapped when the file was listed."""
        rows: list[Row] = []
        problems = size_problem(str(self.file), self.stated_size, height, width)
        for raw in self.rows:
            checked = _check_row(raw)
            if isinstance(checked, str):
                problems.append(Problem(str(self.file), None, f"{raw.name}: {checked}"))
            else:
                rows.append(checked)
        labels, more = settle(rows, height, width, str(self.file))
        return unless_all_bad(labels, problems + more, self.file, self.rules, self.lost)


@dataclass
class CocoImage:
    """One image as the file describes it."""

    image_id: int | str
    file_name: str
    stated_size: tuple[int, int] | None
    rows: list[CocoRow] = field(default_factory=list)
    lost: int = 0  # annotations whose category is unknown


def list_file(
    file: Path, root: Path, split: str, names: Sequence[str], folders: Folders, rules: LabelRules = _RULES
) -> tuple[list[Entry], list[Problem]]:
    """An entry for each image of a COCO JSON.

    Raises:
        UserError: the file is unreadable or not COCO's, its categories do not fit the names, or none of
            its images is found.
    """
    data = read_list(file, MAX_JSON_BYTES, "give a COCO annotation file")
    images, problems = parse(data, str(file), names, rules)
    places = _places(file, root, split)
    entries = []
    found = False
    for image in images:
        path = _locate(image.file_name, places, folders)
        found = found or path is not None
        labels = CocoLabels(file, tuple(image.rows), image.stated_size, rules, image.lost)
        entries.append(Entry(path or places[0] / image.file_name, labels, image.image_id, str(file)))
    if images and not found:
        raise UserError(
            f"image {images[0].file_name!r}, like all others the file names, is in none of "
            + ", ".join(str(place) for place in places),
            where=file,
            fix="put the images into one of these folders",
        )
    return entries, problems


def parse(
    data: bytes, file: str, names: Sequence[str], rules: LabelRules = _RULES
) -> tuple[list[CocoImage], list[Problem]]:
    """The content of a COCO JSON -> its images with their annotations, and what belongs to no image.

    Raises:
        UserError: it is not JSON, not COCO's layout, or its categories do not fit the names.
    """
    content = _load(data, file)
    annotations = content["annotations"]
    used = {
        key for a in annotations if isinstance(a, dict) and (key := key_of(a.get("category_id"))) is not None
    }
    classes = map_categories(content["categories"], used, names, file, rules)
    listed = {
        key_of(c.get("id")): text_of(c.get("name")) for c in content["categories"] if isinstance(c, dict)
    }
    images, problems = _images(content["images"], file)
    left_out: dict[str, list[str]] = {}
    others: dict[str, int] = {}
    for position, annotation in enumerate(annotations):
        reason, name = _attach(annotation, position, images, classes, listed)
        if name is not None:
            others[name] = others.get(name, 0) + 1
        elif reason:
            left_out.setdefault(reason, []).append(_name(annotation, position))
    for reason, rows in left_out.items():
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        problems.append(Problem(file, None, f"{rows[0]}{more}: {reason}", count=len(rows)))
    problems += [
        *_merged(classes, listed, file),
        *_unmapped(rules, listed, file),
        *other_classes(file, others),
    ]
    return list(images.values()), problems


def _load(data: bytes, file: str) -> dict[str, list[object]]:
    fix = "give a COCO detection file with the lists images, annotations and categories"
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=file, fix=fix) from error
    if not isinstance(content, dict):
        raise UserError("a list or value, not a COCO file", where=file, fix=fix)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"has no list {key!r}", where=file, fix=fix)
    return content


def _images(listed: Sequence[object], file: str) -> tuple[dict[Key, CocoImage], list[Problem]]:
    images: dict[Key, CocoImage] = {}
    problems: list[Problem] = []
    for position, image in enumerate(listed):
        content = image if isinstance(image, dict) else {}
        key = key_of(content.get("id"))
        name = content.get("file_name")
        if key is None or not isinstance(name, str) or not is_file_name(name):
            problems.append(
                Problem(file, None, f"image at position {position} has no usable id and file_name")
            )
        elif key in images:
            problems.append(
                Problem(file, None, f"image {name!r} has the id {key!r} of {images[key].file_name!r}")
            )
        else:
            images[key] = CocoImage(content["id"], name.replace("\\", "/"), _stated_size(content))
    return images, problems


def _stated_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or max(height, width) > MAX_PIXELS:
        return None
    return height, width


def _merged(classes: Mapping[Key, int], listed: Mapping[Key | None, str], file: str) -> list[Problem]:
    """A note on each class that several categories are."""
    of_class: dict[int, list[str]] = {}
    for key, class_id in classes.items():
        of_class.setdefault(class_id, []).append(f"{listed[key]!r:.60} ({key!r:.20})")
    return [
        Problem(file, None, f"categories {' and '.join(same[:5])} are one class", "note")
        for same in of_class.values()
        if len(same) > 1
    ]


def _unmapped(rules: LabelRules, listed: Mapping[Key | None, str], file: str) -> list[Problem]:
    """A note on each name of the class map that is no category: it may be misspelt."""
    there = {loose(name) for name in listed.values()}
    return [
        Problem(file, None, f"--class-map {old}={new}: no category here is called {old!r:.80}", "note")
        for old, new in rules.class_map
        if loose(old) not in there
    ]


def _attach(
    annotation: object,
    position: int,
    images: Mapping[Key, CocoImage],
    classes: Mapping[Key, int],
    listed: Mapping[Key | None, str],
) -> tuple[str, str | None]:
    """Hand an annotation to its image; else why it is left out, or its category that is none of ours."""
    if not isinstance(annotation, dict):
        return "not a mapping", None
    image_key, category = key_of(annotation.get("image_id")), key_of(annotation.get("category_id"))
    if image_key is None or image_key not in images:
        return "image_id is not the id of an image in the file", None
    if category is None or category not in classes:
        if category in listed:
            return "", listed[category]
        images[image_key].lost += 1
        return (
            f"category_id {reprlib.repr(annotation.get('category_id')):.60} is not a class of data.yaml",
            None,
        )
    row = CocoRow(
        name=_name(annotation, position),
        class_id=classes[category],
        bbox_ltwh=annotation.get("bbox"),
        area=annotation.get("area"),
        crowd=bool(annotation.get("iscrowd")),
    )
    images[image_key].rows.append(row)
    return "", None


def _name(annotation: object, position: int) -> str:
    if isinstance(annotation, dict) and "id" in annotation:
        return f"annotation {reprlib.repr(annotation['id'])}"[:80]
    return f"annotation at position {position}"


def _check_row(raw: CocoRow) -> Row | str:
    """The row with its numbers checked, or why it is left out."""
    bbox = raw.bbox_ltwh
    if not isinstance(bbox, list) or len(bbox) != 4:
        return "bbox is not [left, top, width, height]"
    numbers = [_number(value) for value in bbox]
    if None in numbers:
        return f"bbox {reprlib.repr(bbox):.80} is not four finite numbers"
    left, top, width, height = (value for value in numbers if value is not None)
    if width <= 0 or height <= 0:
        return f"width {width:g} and height {height:g} must be positive"
    area = _number(raw.area)
    return Row(
        class_id=raw.class_id,
        box_xyxy=(left, top, left + width, top + height),
        name=raw.name,
        crowd=raw.crowd,
        area=area if area is not None and area >= 0 else None,
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _places(file: Path, root: Path, split: str) -> list[Path]:
    """Folders to look for images in, best first."""
    here = file.parent
    stem = file.name.partition(".")[0]
    named = [stem.removeprefix("instances_"), stem.rpartition("_")[2], split]
    found = [here, root, root / "images"]
    found += [
        base / tail
        for name in named
        for base in (here, here.parent, root)
        for tail in (Path("images", name), Path(name))
    ]
    return list(dict.fromkeys(found))


def _locate(file_name: str, places: Sequence[Path], folders: Folders) -> Path | None:
    if found := next(_candidates(file_name, places, folders), None):
        return found
    return next((found for place in places if (found := folders.spelled(place / file_name))), None)


def _candidates(file_name: str, places: Sequence[Path], folders: Folders) -> Iterator[Path]:
    for place in places:
        if folders.hold(path := place / file_name):
            yield path
