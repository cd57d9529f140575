"""Do the anchors fit the boxes of a data set, and which would fit better?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Sizes = NDArray[np.float64]  # (n, 2) widths and heights in input pixels

MINIMUM_RECALL = 0.98
SMALLEST_SIDE_PX = 2.0  # boxes thinner than this in both directions say nothing about good anchors
FIT_SAMPLE = 10_000  # boxes; more move no anchor by much, but take the fit from seconds to minutes


@dataclass(frozen=True)
class AnchorReport:
    """``recall`` is what the present anchors reach; ``anchors`` (L, A, 2) in pixels are better, or None."""

    recall: float
    anchors: NDArray[np.float64] | None = None
    fitted_recall: float | None = None


def best_possible_recall(boxes_wh_px: ArrayLike, anchors_px: ArrayLike, threshold: float = 4.0) -> float:
    """Share of (n, 2) boxes for which some anchor is within a factor ``threshold`` in width and height.

    These are the boxes that the loss can match at all. ``anchors_px`` may have any leading shape. 1.0 for no
    boxes.
    """
    boxes = _sizes(boxes_wh_px)
    if len(boxes) == 0:
        return 1.0
    return float((_closeness(boxes, _sizes(anchors_px)) > 1 / threshold).mean())


def fit_anchors(
    boxes_wh_px: ArrayLike,
    levels: int,
    per_level: int = 3,
    threshold: float = 4.0,
    seed: int = 0,
    generations: int = 1000,
) -> NDArray[np.float64]:
    """Anchors (levels, per_level, 2) in pixels for (n, 2) boxes, smallest area first.

    k-means on sizes divided by their spread, then random mutations that are kept where they raise the mean
    closeness of the boxes to their anchor (as YOLOv5 does it). The same input and seed give the same anchors.

    Raises
    ------
    ValueError
        There are fewer boxes of at least two pixels than anchors.
    """
    rng = np.random.default_rng(seed)
    count = levels * per_level
    boxes = _usable(_sizes(boxes_wh_px))
    if len(boxes) < count:
        raise ValueError(f"{len(boxes)} boxes are too few to fit {count} anchors")
    if len(boxes) > FIT_SAMPLE:
        boxes = rng.choice(boxes, FIT_SAMPLE, replace=False)
    anchors = _mutate(_cluster(boxes, count), boxes, threshold, rng, generations)
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")].reshape(levels, per_level, 2)


def check_anchors(
    boxes_wh_px: ArrayLike,
    anchors_px: ArrayLike,
    threshold: float = 4.0,
    seed: int = 0,
    generations: int = 1000,
    minimum_recall: float = MINIMUM_RECALL,
) -> AnchorReport:
    """Judge anchors (L, A, 2) by (n, 2) boxes, and fit new ones only where they miss too much.

    New anchors are proposed if the recall is below ``minimum_recall`` and theirs is higher.
    """
    boxes, (levels, per_level, _) = _sizes(boxes_wh_px), np.shape(anchors_px)
    recall = best_possible_recall(boxes, anchors_px, threshold)
    if recall >= minimum_recall or len(_usable(boxes)) < levels * per_level:
        return AnchorReport(recall)
    fitted = fit_anchors(boxes, levels, per_level, threshold, seed, generations)
    fitted_recall = best_possible_recall(boxes, fitted, threshold)
    return AnchorReport(recall, fitted if fitted_recall > recall else None, fitted_recall)


def _sizes(values: Any) -> Sizes:
    return np.asarray(values, dtype=np.float64).reshape(-1, 2)


def _usable(boxes: Sizes) -> Sizes:
    return boxes[(boxes >= SMALLEST_SIDE_PX).any(axis=1)]


def _closeness(boxes: Sizes, anchors: Sizes) -> NDArray[np.float64]:
    """(n,) of each box to its nearest anchor: 1 is equal, 1/4 is four times too large or small."""
    best = np.zeros(len(boxes))
    for anchor in anchors:  # a handful; n x 2 arrays instead of n x k x 2
        ratio = boxes / anchor
        with np.errstate(divide="ignore"):  # a box without width is infinitely far from every anchor
            np.maximum(best, np.minimum(ratio, 1 / ratio).min(axis=1), out=best)
    return best


def _cluster(boxes: Sizes, count: int) -> Sizes:
    """(count, 2) k-means centres. It starts from quantiles of the area, not from a random draw."""
    from scipy.cluster.vq import kmeans  # here, as most runs keep their anchors and need not wait for scipy

    spread = boxes.std(axis=0)
    spread[spread == 0] = 1.0
    by_area = boxes[np.argsort(boxes.prod(axis=1), kind="stable")]
    start = by_area[((np.arange(count) + 0.5) / count * len(boxes)).astype(int)]
    centres, _ = kmeans(boxes / spread, start / spread)
    # Clusters that lose all their boxes are dropped by k-means; then the quantiles are the better start.
    found: Sizes = centres * spread if len(centres) == count else start
    return found.clip(min=SMALLEST_SIDE_PX)


def _mutate(
    anchors: Sizes, boxes: Sizes, threshold: float, rng: np.random.Generator, generations: int
) -> Sizes:
    fitness = _fitness(boxes, anchors, threshold)
    for _ in range(generations):
        # One or two anchors at a time: after k-means, moving all of them at once is nearly always worse.
        changed = rng.random((len(anchors), 1)) < 1.5 / len(anchors)
        factor = 1 + changed * rng.random() * rng.normal(0, 0.1, anchors.shape)
        mutant = np.maximum(anchors * factor.clip(0.3, 3.0), SMALLEST_SIDE_PX)
        mutant_fitness = _fitness(boxes, mutant, threshold)
        if mutant_fitness > fitness:
            anchors, fitness = mutant, mutant_fitness
    return anchors


def _fitness(boxes: Sizes, anchors: Sizes, threshold: float) -> float:
    """Mean closeness of the boxes, those beyond the threshold counting nothing."""
    closeness = _closeness(boxes, anchors)
    return float((closeness * (closeness > 1 / threshold)).mean())
