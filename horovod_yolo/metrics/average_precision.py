"""From hits and false alarms to precision, recall and their averages: pure functions.

Shapes: D detections sorted by falling score, ``...`` any leading dimensions (area ranges, thresholds).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

RECALL_POINTS: FloatArray = np.linspace(0.0, 1.0, 101, dtype=np.float64)
CONFIDENCE_POINTS: FloatArray = np.linspace(0.0, 1.0, 1000, dtype=np.float64)
UNDEFINED = -1.0  # COCO's mark for a class or size of which there is no truth


def interpolated_precision(hits: BoolArray, false_alarms: BoolArray, positives: int) -> FloatArray:
    """Precision at the 101 recall points, (T, D) and (T, D) -> (T, 101).

    At each point: the best precision at this recall or a higher one, 0 where it is never reached, and
    ``UNDEFINED`` where ``positives`` (the truths to find) is 0. The definition is COCO's (Lin et al., 2014).
    """
    if positives == 0:
        return np.full((len(hits), len(RECALL_POINTS)), UNDEFINED)
    found = np.cumsum(hits, axis=-1, dtype=np.float64)
    wrong = np.cumsum(false_alarms, axis=-1, dtype=np.float64)
    recall = found / positives
    # The summand and its place are pycocotools': it makes 0 / 0 a 0, and the last digit the same.
    precision = found / (wrong + found + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=-1)[:, ::-1]
    result = np.zeros((len(hits), len(RECALL_POINTS)))
    for row, (row_recall, row_envelope) in enumerate(zip(recall, envelope, strict=True)):
        places = np.searchsorted(row_recall, RECALL_POINTS, side="left")
        reached = places < len(row_recall)
        result[row, reached] = row_envelope[places[reached]]
    return result


def final_recall(hits: BoolArray, positives: int) -> FloatArray:
    """Share of the truths that were found at all, (..., D) -> (...,); ``UNDEFINED`` where there are none."""
    if positives == 0:
        return np.full(hits.shape[:-1], UNDEFINED)
    recall: FloatArray = hits.sum(axis=-1) / positives
    return recall


def mean_of_defined(values: FloatArray) -> float:
    """Mean of all values that are not ``UNDEFINED``; ``UNDEFINED`` where none is defined."""
    defined = values[values > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def precision_recall_by_confidence(
    scores: FloatArray, hits: BoolArray, false_alarms: BoolArray, positives: int
) -> tuple[FloatArray, FloatArray]:
    """Precision and recall of the detections that score at least each confidence point: (1000,), (1000,).

    Three (D,) inputs, scores falling. Precision is 0 where no detection is left, recall is 0 where
    ``positives`` is.
    """
    kept = len(scores) - np.searchsorted(scores[::-1], CONFIDENCE_POINTS, side="left")
    found = np.concatenate(([0], np.cumsum(hits)))[kept]
    wrong = np.concatenate(([0], np.cumsum(false_alarms)))[kept]
    return found / np.maximum(found + wrong, 1), found / max(positives, 1)


def f1_score(precision: FloatArray, recall: FloatArray) -> FloatArray:
    """Harmonic mean, elementwise; 0 where both are."""
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def best_confidence(precision: FloatArray, recall: FloatArray) -> int:
    """The confidence point with the highest F1, averaged over classes: (C, P) and (C, P) -> place in P.

    It is where YOLOv5 reads off its P and R. Of equals the lowest confidence is taken.
    """
    return int(f1_score(precision, recall).mean(axis=0).argmax())
