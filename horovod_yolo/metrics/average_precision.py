"""From hits and false alarms to precision, recall and their averages: pure functions.

Shapes: D detections sorted by falling score, ``...`` any leading dimensions (area ranges, thresholds).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

RECALL_POINTS: FloatArray = np.linspace(0.0, 1.0, 101, dtype=np.float64)
CONFIDENCE_POINTS: FloatArray = np.linspace(0.0, 1.0, 1000, dtype=np.float64)
UNDEFINED = -1.0  # COCO's mark for a class or size of which there is no truth


def interpolated_precision(wrong_at_hits: FloatArray, hits: IntArray, positives: int) -> FloatArray:
    """Precision at the 101 recall points, (..., K) and (...,) -> (..., 101).

    Args:
        wrong_at_hits: how many false alarms come before the k-th hit, k = 0 ... K - 1; what stands behind
            the last hit is not read.
        hits: how many there are, at most K.
        positives: the truths to find.

    At each point: the best precision at this recall or a higher one, 0 where it is never reached, and
    ``UNDEFINED`` where ``positives`` is 0. The definition is COCO's (Lin et al., 2014). Precision falls with
    every false alarm, so the best is that of a hit, and only hits are looked at.
    """
    if positives == 0:
        return np.full((*hits.shape, len(RECALL_POINTS)), UNDEFINED)
    found = np.arange(1, wrong_at_hits.shape[-1] + 1, dtype=np.float64)
    # The summand and its place are pycocotools': it makes 0 / 0 a 0, and the last digit the same.
    precision = found / (wrong_at_hits + found + np.spacing(1))
    precision[found > hits[..., None]] = 0
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    places = np.searchsorted(found / positives, RECALL_POINTS, side="left")
    result = np.zeros((*hits.shape, len(RECALL_POINTS)))
    reached = places < len(found)
    result[..., reached] = envelope[..., places[reached]]
    return result


def final_recall(hits: IntArray, positives: int) -> FloatArray:
    """Share of the truths that were found at all, (...,) -> (...,); ``UNDEFINED`` where there are none."""
    if positives == 0:
        return np.full(hits.shape, UNDEFINED)
    recall: FloatArray = hits / positives
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
