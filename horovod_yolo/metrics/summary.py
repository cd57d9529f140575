"""All numbers of one evaluation, computed from the state that `DetectionAccumulator` gathers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.metrics import average_precision as ap
from horovod_yolo.metrics.matching import AREA_NAMES, BoolArray, FloatArray, IntArray

State = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class ClassSummary:
    """One class; its four last numbers are -1 where it has no instance."""

    class_id: int
    images: int  # with at least one instance
    instances: int  # crowds do not count
    precision: float
    recall: float
    ap50: float
    ap50_95: float


@dataclass(frozen=True)
class Curves:
    """What plots are drawn from: IoU 0.5, all sizes. Rows of classes without instances are 0."""

    recall: FloatArray  # (101,)
    precision_at_recall: FloatArray  # (C, 101)
    confidence: FloatArray  # (1000,)
    precision: FloatArray  # (C, 1000) by confidence
    recall_at_confidence: FloatArray  # (C, 1000)
    f1: FloatArray  # (C, 1000) by confidence


@dataclass(frozen=True)
class DetectionSummary:
    """All numbers of one evaluation.

    ``coco`` holds the twelve of the COCO challenge under AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100,
    ARs, ARm and ARl (other limits on detections have other names), each -1 where there is nothing to find.
    The other means leave classes without instances out, and are 0 where no class has any. Precision and
    recall are at IoU 0.5 and at ``confidence``, that of the highest mean F1.
    """

    coco: Mapping[str, float]
    precision: float
    recall: float
    map50: float
    map50_95: float
    confidence: float
    images: int
    instances: int
    per_class: tuple[ClassSummary, ...]
    curves: Curves


@dataclass(frozen=True)
class _ClassRows:
    """One class over the whole data set: its detections by falling score, its truths."""

    scores: FloatArray  # (D,)
    ranks: IntArray  # (D,)
    hits: BoolArray  # (A, T, D)
    false_alarms: BoolArray  # (A, T, D)
    positives: IntArray  # (A,)
    images: int


@dataclass(frozen=True)
class _Tables:
    """Results of all classes, area ranges, thresholds and limits."""

    precision: FloatArray  # (C, A, T, 101)
    recall: FloatArray  # (C, A, M, T)
    by_confidence: FloatArray  # (C, 2, 1000) precision, recall
    instances: IntArray  # (C,)
    images: IntArray  # (C,)


def summarise(state: State, num_classes: int) -> DetectionSummary:
    """Compute everything from a state that is sorted by image (`DetectionAccumulator.state` gives one)."""
    thresholds = np.asarray(state["iou_thresholds"], np.float64)
    limits = [int(limit) for limit in np.asarray(state["max_detections"], np.int64)]
    tables = _tables(state, num_classes, thresholds, limits)

    present = tables.instances > 0
    curves = _curves(tables, present, thresholds)
    best = 0
    if present.any():
        best = ap.best_confidence(curves.precision[present], curves.recall_at_confidence[present])
    classes = tuple(_class_summary(c, tables, best, thresholds) for c in range(num_classes))

    def mean(numbers: list[float]) -> float:
        return float(np.mean(numbers)) if numbers else 0.0

    return DetectionSummary(
        coco=_coco_numbers(tables, thresholds, limits),
        precision=mean([c.precision for c in classes if c.instances]),
        recall=mean([c.recall for c in classes if c.instances]),
        map50=mean([c.ap50 for c in classes if c.instances]),
        map50_95=mean([c.ap50_95 for c in classes if c.instances]),
        confidence=float(ap.CONFIDENCE_POINTS[best]),
        images=len(state["images"]),
        instances=int(tables.instances.sum()),
        per_class=classes,
        curves=curves,
    )


def _tables(state: State, num_classes: int, thresholds: FloatArray, limits: list[int]) -> _Tables:
    areas, count = len(AREA_NAMES), len(thresholds)
    tables = _Tables(
        np.full((num_classes, areas, count, len(ap.RECALL_POINTS)), ap.UNDEFINED),
        np.full((num_classes, areas, len(limits), count), ap.UNDEFINED),
        np.zeros((num_classes, 2, len(ap.CONFIDENCE_POINTS))),
        np.zeros(num_classes, np.int64),
        np.zeros(num_classes, np.int64),
    )
    half = _at(thresholds, 0.5)
    for class_id in np.unique(np.asarray(state["truth_classes"], np.int64)):  # no truth: all stays undefined
        rows = _class_rows(state, int(class_id), count)
        for area, positives in enumerate(rows.positives):
            hits, wrong = rows.hits[area], rows.false_alarms[area]
            tables.precision[class_id, area] = ap.interpolated_precision(hits, wrong, int(positives))
            for place, limit in enumerate(limits):
                recall = ap.final_recall(hits[:, rows.ranks < limit], int(positives))
                tables.recall[class_id, area, place] = recall
        tables.by_confidence[class_id] = ap.precision_recall_by_confidence(
            rows.scores, rows.hits[0, half], rows.false_alarms[0, half], int(rows.positives[0])
        )
        tables.instances[class_id] = rows.positives[0]
        tables.images[class_id] = rows.images
    return tables


def _class_rows(state: State, class_id: int, thresholds: int) -> _ClassRows:
    """Select one class. Equal scores stay in the order of images, and within one as they were given."""
    scores = np.asarray(state["scores"], np.float64)
    rows = np.flatnonzero(state["detection_classes"] == class_id)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    areas = len(AREA_NAMES)
    bits = np.unpackbits(
        np.asarray(state["outcomes"], np.uint8)[rows], axis=1, count=2 * areas * thresholds
    ).T.reshape(2, areas, thresholds, len(rows))
    truths = np.flatnonzero(state["truth_classes"] == class_id)
    counted = np.unpackbits(np.asarray(state["truths_counted"], np.uint8)[truths], axis=1, count=areas)
    images = np.repeat(np.arange(len(state["images"])), np.asarray(state["truths_per_image"], np.int64))
    return _ClassRows(
        scores[rows],
        np.asarray(state["ranks"], np.int64)[rows],
        bits[0].astype(bool),
        bits[1].astype(bool),
        counted.sum(axis=0, dtype=np.int64),
        len(np.unique(images[truths[counted[:, 0] > 0]])),
    )


def _at(thresholds: FloatArray, iou: float) -> NDArray[np.int64]:
    """Places of a threshold: none or one."""
    return np.flatnonzero(np.isclose(thresholds, iou))


def _coco_numbers(tables: _Tables, thresholds: FloatArray, limits: list[int]) -> dict[str, float]:
    precision, recall = tables.precision, tables.recall
    numbers = {
        "AP": precision[:, 0],
        "AP50": precision[:, 0, _at(thresholds, 0.5)],
        "AP75": precision[:, 0, _at(thresholds, 0.75)],
        "APs": precision[:, 1],
        "APm": precision[:, 2],
        "APl": precision[:, 3],
        **{f"AR{limit}": recall[:, 0, place] for place, limit in enumerate(limits)},
        "ARs": recall[:, 1, -1],
        "ARm": recall[:, 2, -1],
        "ARl": recall[:, 3, -1],
    }
    return {name: ap.mean_of_defined(values) for name, values in numbers.items()}


def _class_summary(class_id: int, tables: _Tables, best: int, thresholds: FloatArray) -> ClassSummary:
    instances = int(tables.instances[class_id])
    precision, recall = tables.by_confidence[class_id, :, best] if instances else [ap.UNDEFINED] * 2
    return ClassSummary(
        class_id,
        int(tables.images[class_id]),
        instances,
        float(precision),
        float(recall),
        ap.mean_of_defined(tables.precision[class_id, 0, _at(thresholds, 0.5)]),
        ap.mean_of_defined(tables.precision[class_id, 0]),
    )


def _curves(tables: _Tables, present: BoolArray, thresholds: FloatArray) -> Curves:
    precision, recall = np.where(present[:, None, None], tables.by_confidence, 0.0).transpose(1, 0, 2)
    at_half = tables.precision[:, 0, _at(thresholds, 0.5)[0]]
    return Curves(
        ap.RECALL_POINTS,
        np.where(present[:, None], at_half, 0.0),
        ap.CONFIDENCE_POINTS,
        precision,
        recall,
        ap.f1_score(precision, recall),
    )
