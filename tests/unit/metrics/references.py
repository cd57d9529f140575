"""Random images for the tests, and pycocotools' numbers for them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from horovod_yolo.metrics.accumulator import COCO_LIMITS, DetectionAccumulator
from horovod_yolo.metrics.matching import ImageDetections, ImageTruths

Sample = tuple[ImageTruths, ImageDetections]


def random_image(rng: np.random.Generator, classes: int, most_truths: int, most_detections: int) -> Sample:
    """Detections near truths and elsewhere, exact copies, ties of score and of overlap, crowds."""
    n, m = rng.integers(0, most_truths + 1), rng.integers(0, most_detections + 1)
    boxes = np.c_[rng.uniform(0, 300, (n, 2)), rng.uniform(1, 150, (n, 2))]
    if n > 1:
        boxes[-1] = boxes[0]
    areas = boxes[:, 2:].prod(axis=1) * rng.uniform(0.5, 1, n)
    truths = ImageTruths(boxes, rng.integers(0, classes, n), rng.random(n) < 0.15, areas)

    found = np.c_[rng.uniform(0, 300, (m, 2)), rng.uniform(1, 150, (m, 2))]
    labels = rng.integers(0, classes, m)
    if n:
        source, near = rng.integers(0, n, m), rng.random(m) < 0.8
        noise = rng.normal(0, 6, (m, 4)) * (rng.random((m, 1)) < 0.8)
        found[near] = (boxes[source] + noise)[near]
        found[:, 2:] = np.abs(found[:, 2:])
        labels = np.where(rng.random(m) < 0.9, truths.classes[source], labels)
    scores = rng.random(m).round(int(rng.integers(1, 6)))
    return truths, ImageDetections(found, scores, labels)


def coco_files(samples: Sequence[Sample], classes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO data set and results list; annotation ids start at 1."""
    annotations: list[dict[str, Any]] = []
    results = []
    for image, (truths, found) in enumerate(samples):
        columns = (truths.boxes_ltwh, truths.classes, truths.crowd, truths.areas)
        for box, class_id, crowd, area in zip(*columns, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(class_id),
                    "bbox": box.tolist(),
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
        for box, score, class_id in zip(found.boxes_ltwh, found.scores, found.classes, strict=True):
            row = {
                "image_id": image,
                "category_id": int(class_id),
                "bbox": box.tolist(),
                "score": float(score),
            }
            results.append(row)
    dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(samples))],
        "categories": [{"id": c, "name": str(c)} for c in range(classes)],
        "annotations": annotations,
    }
    return dataset, results


def pycocotools_evaluation(dataset: dict[str, Any], results: list[dict[str, Any]]) -> COCOeval:
    """Its numbers in ``.stats``, its table in ``.eval["precision"]`` (T, R, K, A, M)."""
    truths = COCO()
    truths.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        truths.createIndex()
        if results:
            found = truths.loadRes(results)
        else:  # loadRes refuses an empty list
            found = COCO()
            found.dataset = {**dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truths, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def accumulate(
    samples: Sequence[Sample], classes: int, ids: Sequence[int] | None = None
) -> DetectionAccumulator:
    result = DetectionAccumulator(classes, max_detections=COCO_LIMITS)
    for image in range(len(samples)) if ids is None else ids:
        result.add(image, *samples[image])
    return result
