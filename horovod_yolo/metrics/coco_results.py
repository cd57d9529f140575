"""COCO-format results: score a file against a ground truth, print the numbers, write a results file.

Equal to pycocotools, with these decisions:

- Annotation ids are not used: they may repeat, and one may be 0 (pycocotools reads 0 as "unmatched" and
  counts such a hit as a false alarm).
- ``ignore`` has no effect, as in pycocotools, which overwrites it with ``iscrowd``. A missing ``iscrowd``
  is 0, a missing ``area`` that of the box.
- Ids are numbers or strings, and 7 is the same as "7". They are sorted as numbers, or as strings as soon as
  one is a string (the order decides between equal scores).
- Results of unknown categories, and annotations of unknown images or categories, are left out and counted.
  Results for unknown images are an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from horovod_yolo.core.errors import UserError
from horovod_yolo.io.atomic import replacing
from horovod_yolo.metrics.accumulator import COCO_LIMITS, DetectionAccumulator, DetectionSummary
from horovod_yolo.metrics.matching import BoolArray, FloatArray, ImageDetections, ImageTruths, IntArray

CocoId = int | str
Row = dict[str, Any]


@dataclass(frozen=True)
class Category:
    """A class of the ground truth: its id in the file and its name."""

    id: CocoId
    name: str


@dataclass(frozen=True)
class FileEvaluation:
    """The numbers of two files. Class c of the summary is ``categories[c]``."""

    summary: DetectionSummary
    categories: tuple[Category, ...]
    skipped_truths: int  # annotations of images or categories that the ground truth does not list
    skipped_detections: int  # results of categories that it does not list


@dataclass(frozen=True)
class _Truths:
    """A ground truth in the order of its file; images and classes are positions, -1 for unknown ones."""

    image_places: dict[str, int]
    category_places: dict[str, int]
    categories: tuple[Category, ...]
    images: IntArray
    classes: IntArray
    boxes_ltwh: FloatArray
    crowd: BoolArray
    areas: FloatArray

    def of_image(self, rows: IntArray) -> ImageTruths:
        return ImageTruths(self.boxes_ltwh[rows], self.classes[rows], self.crowd[rows], self.areas[rows])


@dataclass(frozen=True)
class _Results:
    """A results list in the order of its file; classes are positions, -1 for unknown ones."""

    images: IntArray
    classes: IntArray
    boxes_ltwh: FloatArray
    scores: FloatArray

    def of_image(self, rows: IntArray) -> ImageDetections:
        return ImageDetections(self.boxes_ltwh[rows], self.scores[rows], self.classes[rows])


def evaluate_files(gt: Path, dt: Path) -> FileEvaluation:
    """Score the results list ``dt`` against the COCO data set ``gt``.

    Raises:
        UserError: a file is missing, is not JSON or not of this format, a result names an unknown image, or
            no result is of a known category.
    """
    truths = _read_truths(gt)
    results = _read_results(dt, gt, truths)
    known_truths = (truths.images >= 0) & (truths.classes >= 0)
    known_results = results.classes >= 0
    count = len(truths.image_places)
    accumulator = DetectionAccumulator(len(truths.categories), max_detections=COCO_LIMITS)
    rows_by_image = zip(
        _rows_by_image(truths.images, known_truths, count),
        _rows_by_image(results.images, known_results, count),
        strict=True,
    )
    for image, (of_truths, of_results) in enumerate(rows_by_image):
        accumulator.add(image, truths.of_image(of_truths), results.of_image(of_results))
    return FileEvaluation(
        accumulator.summary(),
        truths.categories,
        int((~known_truths).sum()),
        int((~known_results).sum()),
    )


def format_table(summary: DetectionSummary) -> str:
    """The twelve numbers, laid out as people know them from COCO's own program."""
    lines = []
    sizes = {"s": "small", "m": "medium", "l": "large"}
    most = max(int(name[2:]) for name in summary.coco if name[:2] == "AR" and name[2:].isdigit())
    for name, value in summary.coco.items():
        kind, rest = name[:2], name[2:]
        title = "Average Precision" if kind == "AP" else "Average Recall"
        iou = f"0.{rest}" if kind == "AP" and rest.isdigit() else "0.50:0.95"
        limit = rest if kind == "AR" and rest.isdigit() else most
        lines.append(
            f" {title:<18} ({kind}) @[ IoU={iou:<9} | area={sizes.get(rest, 'all'):>6} "
            f"| maxDets={limit:>3} ] = {value:0.3f}"
        )
    return "\n".join(lines)


def format_classes(summary: DetectionSummary, names: Sequence[str]) -> str:
    """A line for all classes and one for each: images, instances, precision, recall, mAP50, mAP50-95."""
    width = max(len("class"), len("all"), *(len(name) for name in names))
    lines = [f"{'class':<{width}} {'images':>8} {'boxes':>8} {'P':>7} {'R':>7} {'mAP50':>7} {'mAP50-95':>9}"]

    def add(name: str, images: int, instances: int, *numbers: float) -> None:
        shown = [f"{number:.3f}" if number >= 0 else "-" for number in numbers]
        lines.append(
            f"{name:<{width}} {images:>8} {instances:>8} "
            f"{shown[0]:>7} {shown[1]:>7} {shown[2]:>7} {shown[3]:>9}"
        )

    s = summary
    add("all", s.images, s.instances, s.precision, s.recall, s.map50, s.map50_95)
    for c in summary.per_class:
        add(names[c.class_id], c.images, c.instances, c.precision, c.recall, c.ap50, c.ap50_95)
    return "\n".join(lines)


def to_json(summary: DetectionSummary, names: Sequence[str] = ()) -> dict[str, Any]:
    """The numbers as JSON takes them, with the names of ``results.json``; ``names`` by class are optional."""
    return {
        "coco": dict(summary.coco),
        **summary.scores,
        "confidence": summary.confidence,
        "images": summary.images,
        "instances": summary.instances,
        "per_class": [
            {
                "class": c.class_id,
                **({"name": names[c.class_id]} if names else {}),
                "images": c.images,
                "instances": c.instances,
                "precision": c.precision,
                "recall": c.recall,
                "mAP50": c.ap50,
                "mAP50-95": c.ap50_95,
            }
            for c in summary.per_class
        ],
    }


def write_results(
    path: Path, images: Iterable[tuple[CocoId, ImageDetections]], category_ids: Sequence[CocoId]
) -> None:
    """Write a COCO results list: per image its id and detections; class c becomes ``category_ids[c]``.

    Numbers are written in full, so that `evaluate_files` gives what validation gave. The file appears
    complete or not at all.
    """
    with replacing(path) as file:
        separator = "["
        for image_id, found in images:
            for box_ltwh, score, class_id in zip(found.boxes_ltwh, found.scores, found.classes, strict=True):
                row = {
                    "image_id": image_id,
                    "category_id": category_ids[int(class_id)],
                    "bbox": [float(side) for side in box_ltwh],
                    "score": float(score),
                }
                file.write(f"{separator}\n{json.dumps(row)}".encode())
                separator = ","
        file.write(b"[]\n" if separator == "[" else b"\n]\n")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path, fix="Check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"is not text at byte {error.start}", where=path, fix="Give a JSON file") from error
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise UserError(
            f"is not JSON ({error.msg})", where=place, fix="Mend the file or write it again"
        ) from error


def _read_truths(path: Path) -> _Truths:
    dataset = _read_json(path)
    if not isinstance(dataset, dict):
        raise UserError("is not a COCO data set", where=path, fix="Give the ground truth's JSON")
    images, categories, annotations = (
        _checked_rows(dataset.get(name), path, name) for name in ("images", "categories", "annotations")
    )
    image_places, _ = _sorted_places(images, path, "images")
    category_places, order = _sorted_places(categories, path, "categories")
    boxes_ltwh = _numbers([row.get("bbox") for row in annotations], (4,), path, "annotations", "bbox")
    box_areas = boxes_ltwh[:, 2] * boxes_ltwh[:, 3]
    areas = [
        a if row.get("area") is None else row["area"] for a, row in zip(box_areas, annotations, strict=True)
    ]
    return _Truths(
        image_places,
        category_places,
        tuple(Category(row["id"], str(row.get("name", row["id"]))) for row in (categories[i] for i in order)),
        _places(annotations, "image_id", image_places),
        _places(annotations, "category_id", category_places),
        boxes_ltwh,
        np.array([bool(row.get("iscrowd")) for row in annotations], bool),
        _numbers(areas, (), path, "annotations", "area"),
    )


def _read_results(path: Path, truths_path: Path, truths: _Truths) -> _Results:
    rows = _checked_rows(_read_json(path), path, "results")
    images = _places(rows, "image_id", truths.image_places)
    for row in np.flatnonzero(images < 0)[:1]:
        raise UserError(
            f"results[{row}] names image {rows[row].get('image_id')!r}, which is not in {truths_path}",
            where=path,
            fix="Give the ground truth of the same images",
        )
    classes = _places(rows, "category_id", truths.category_places)
    if len(rows) and (classes < 0).all():
        raise UserError(
            f"no result is of a category of {truths_path}; the first is of {rows[0].get('category_id')!r}",
            where=path,
            fix=f"Use its category ids: {', '.join(list(truths.category_places)[:10])}",
        )
    return _Results(
        images,
        classes,
        _numbers([row.get("bbox") for row in rows], (4,), path, "results", "bbox"),
        _numbers([row.get("score") for row in rows], (), path, "results", "score"),
    )


def _checked_rows(rows: Any, path: Path, section: str) -> list[Row]:
    if not isinstance(rows, list):
        raise UserError(f"has no list of {section}", where=path, fix="Give a file in COCO's format")
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{section}[{place}] is {row!r:.40}", where=path, fix="Each must be an object")
    return rows


def _sorted_places(rows: Sequence[Row], path: Path, section: str) -> tuple[dict[str, int], list[int]]:
    """The place of each id in sorted order, and the rows' numbers in that order."""
    if not rows:
        raise UserError(f"{section} is empty", where=path, fix="Give the ground truth with all its sections")
    ids: list[CocoId] = []
    for place, row in enumerate(rows):
        value = row.get("id")
        if not isinstance(value, int | str):
            raise UserError(f"{section}[{place}].id is {value!r}", where=path, fix="Use a number or a string")
        ids.append(value)
    numeric = all(isinstance(value, int) for value in ids)
    order = sorted(range(len(ids)), key=lambda i: (int(ids[i]) if numeric else 0, str(ids[i])))
    places: dict[str, int] = {}
    for i in order:
        if str(ids[i]) in places:
            raise UserError(f"{section} has the id {ids[i]!r} twice", where=path, fix="Remove one of them")
        places[str(ids[i])] = len(places)
    return places, order


def _places(rows: Sequence[Row], key: str, places: dict[str, int]) -> IntArray:
    return np.array([places.get(str(row.get(key)), -1) for row in rows], np.int64)


def _numbers(values: Sequence[Any], shape: tuple[int, ...], path: Path, section: str, key: str) -> FloatArray:
    """A column of finite numbers, (rows, *shape)."""
    numbers = _as_numbers(values) if values else np.zeros((0, *shape))
    if numbers is not None and numbers.shape == (len(values), *shape) and np.isfinite(numbers).all():
        return numbers
    for place, value in enumerate(values):
        one = _as_numbers(value)
        if one is None or one.shape != shape or not np.isfinite(one).all():
            needed = "four finite numbers" if shape else "a finite number"
            raise UserError(
                f"{section}[{place}].{key} is {value!r:.60}", where=path, fix=f"It must be {needed}"
            )
    raise AssertionError("each row fits, but not all together")


def _as_numbers(value: Any) -> FloatArray | None:
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError):
        return None


def _rows_by_image(images: IntArray, wanted: BoolArray, count: int) -> list[IntArray]:
    """For each of ``count`` images the numbers of its wanted rows, in the order of the file."""
    rows = np.flatnonzero(wanted)
    rows = rows[np.argsort(images[rows], kind="stable")]
    return np.split(rows, np.searchsorted(images[rows], np.arange(1, count)))
