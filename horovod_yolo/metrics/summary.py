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

    @property
    def scores(self) -> dict[str, float]:
        """Those that a run is watched by, with the names of ``results.json``."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "mAP50": self.map50,
            "mAP50-95": self.map50_95,
        }


@dataclass(frozen=True)
class _Columns:
    """The state's columns, unpacked.

    Detections are sorted by class and falling score. Equal scores stay in the order of images, and within
    one as they were given.
    """

    detection_classes: IntArray  # (D,) rising
    scores: FloatArray  # (D,)
    ranks: IntArray  # (D,)
    in_range: BoolArray  # (D, A)
    paired: IntArray  # (D,) the row in `hits` and `matched`, -1 where no truth is overlapped
    hits: BoolArray  # (P, A, T)
    matched: BoolArray  # (P, A, T)
    truth_classes: IntArray  # (N,)
    truth_images: IntArray  # (N,)
    truths_counted: BoolArray  # (N, A)


@dataclass(frozen=True)
class _ClassRows:
    """One class over the whole data set: its D detections by falling score, those P that overlap a truth."""

    scores: FloatArray  # (D,)
    ranks: IntArray  # (P,)
    places: IntArray  # (P,) in the D, rising
    hits: BoolArray  # (A, T, P)
    matched: BoolArray  # (A, T, P)
    in_range: BoolArray  # (A, D)
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
    half = int(_at(thresholds, 0.5)[0])
    columns = _columns(state, count)
    for class_id in np.unique(columns.truth_classes):  # no truth: all stays undefined
        rows = _class_rows(columns, int(class_id))
        for area, positives in enumerate(rows.positives.tolist()):
            wrong_at_hits, hits = _wrong_at_hits(rows, area)
            tables.precision[class_id, area] = ap.interpolated_precision(wrong_at_hits, hits, positives)
            for place, limit in enumerate(limits):
                within = rows.hits[area][:, rows.ranks < limit].sum(axis=-1)
                tables.recall[class_id, area, place] = ap.final_recall(within, positives)
        tables.by_confidence[class_id] = _by_confidence(rows, half)
        tables.instances[class_id] = rows.positives[0]
        tables.images[class_id] = rows.images
    return tables


def _columns(state: State, thresholds: int) -> _Columns:
    classes = np.asarray(state["detection_classes"], np.int64)
    scores = np.asarray(state["scores"], np.float64)
    order = np.lexsort((-scores, classes))
    areas = len(AREA_NAMES)
    paired = np.asarray(state["paired"], np.bool_)
    outcomes = np.unpackbits(np.asarray(state["outcomes"], np.uint8), axis=1, count=2 * areas * thresholds)
    hits, matched = outcomes.view(np.bool_).reshape(-1, 2, areas, thresholds).swapaxes(0, 1)
    images = np.arange(len(state["images"]))
    return _Columns(
        classes[order],
        scores[order],
        np.asarray(state["ranks"], np.int64)[order],
        _bits(state["in_range"], areas)[order],
        np.where(paired, np.cumsum(paired) - 1, -1)[order],
        hits,
        matched,
        np.asarray(state["truth_classes"], np.int64),
        np.repeat(images, np.asarray(state["truths_per_image"], np.int64)),
        _bits(state["truths_counted"], areas),
    )


def _bits(packed: NDArray[np.generic], count: int) -> BoolArray:
    return np.unpackbits(np.asarray(packed, np.uint8), axis=1, count=count).view(np.bool_)


def _class_rows(columns: _Columns, class_id: int) -> _ClassRows:
    first, last = np.searchsorted(columns.detection_classes, (class_id, class_id + 1))
    own = slice(first, last)
    places = np.flatnonzero(columns.paired[own] >= 0)
    pairs = columns.paired[own][places]
    truths = columns.truth_classes == class_id
    counted = columns.truths_counted[truths]
    return _ClassRows(
        columns.scores[own],
        columns.ranks[own][places],
        places,
        np.ascontiguousarray(columns.hits[pairs].transpose(1, 2, 0)),
        np.ascontiguousarray(columns.matched[pairs].transpose(1, 2, 0)),
        np.ascontiguousarray(columns.in_range[own].T),
        counted.sum(axis=0, dtype=np.int64),
        len(np.unique(columns.truth_images[truths][counted[:, 0]])),
    )


def _wrong_at_hits(rows: _ClassRows, area: int) -> tuple[FloatArray, IntArray]:
    """How many false alarms come before the k-th hit, (T, K), and how many hits there are, (T,)."""
    hits, in_range = rows.hits[area], rows.in_range[area]
    spared = np.cumsum(rows.matched[area] & in_range[rows.places], axis=-1, dtype=np.int32)
    wrong = np.cumsum(in_range, dtype=np.int32)[rows.places] - spared
    counts = hits.sum(axis=-1)
    thresholds, places = np.nonzero(hits)
    result = np.zeros((len(hits), int(counts.max())))
    result[thresholds, np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)] = wrong[hits]
    return result, counts


def _by_confidence(rows: _ClassRows, threshold: int) -> tuple[FloatArray, FloatArray]:
    """Precision and recall by confidence, of any size."""
    hits, wrong = np.zeros(len(rows.scores), bool), rows.in_range[0].copy()
    hits[rows.places] = rows.hits[0, threshold]
    wrong[rows.places] &= ~rows.matched[0, threshold]
    return ap.precision_recall_by_confidence(rows.scores, hits, wrong, int(rows.positives[0]))


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
