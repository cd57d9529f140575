"""Which detection is a hit: COCO's greedy matching, for many images at once.

The rule is that of the COCO detection challenge (Lin et al., "Microsoft COCO: Common Objects in Context",
2014, and its reference program pycocotools): within one image and one class the detections, best score
first, each take the free truth they overlap most. The loops of the reference are gone: only pairs that
overlap enough are kept, and the k-th detection of every (image, class) is matched in one array operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

IOU_THRESHOLDS: FloatArray = np.linspace(0.5, 0.95, 10, dtype=np.float64)
AREA_NAMES = ("all", "small", "medium", "large")
AREA_RANGES: FloatArray = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # pixels^2, closed
_HIGHEST_IOU = 1 - 1e-10  # pycocotools lets rounding spoil a perfect overlap by this much


@dataclass(frozen=True)
class ImageTruths:
    """The labelled objects of one image, in the order of the annotation file (it decides between equals)."""

    boxes_ltwh: FloatArray  # (n, 4) pixels
    classes: IntArray  # (n,)
    crowd: BoolArray  # (n,) one box around many objects: neither to be found nor a false alarm
    areas: FloatArray  # (n,) pixels^2, of the object and not of its box where the data set knows better

    def __post_init__(self) -> None:
        _check_lengths("truths", self.boxes_ltwh, self.classes, self.crowd, self.areas)

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class ImageDetections:
    """What a detector found in one image, in any order (it decides between equal scores)."""

    boxes_ltwh: FloatArray  # (m, 4) pixels
    scores: FloatArray  # (m,)
    classes: IntArray  # (m,)

    def __post_init__(self) -> None:
        _check_lengths("detections", self.boxes_ltwh, self.scores, self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def only(self, chosen: BoolArray) -> ImageDetections:
        """Those that ``chosen``, (m,), marks."""
        return ImageDetections(self.boxes_ltwh[chosen], self.scores[chosen], self.classes[chosen])


@dataclass(frozen=True)
class Matches:
    """The outcome for D detections and N truths of some images, A area ranges and T thresholds.

    Detections are sorted by image, class and falling score; those beyond the limit are left out. P of them
    overlap a truth by the lowest threshold or more, and only those can be matched: with a counted truth (a
    hit) or with an ignored one. What is not matched is a false alarm, if its own size is in the range.
    """

    detection_images: IntArray  # (D,) position of the image in the call
    detection_classes: IntArray  # (D,)
    scores: FloatArray  # (D,)
    ranks: IntArray  # (D,) place by score within image and class, from 0
    in_range: BoolArray  # (D, A) unmatched it is a false alarm
    paired: BoolArray  # (D,) which are the P
    matched: BoolArray  # (P, A, T) with a truth, counted or not
    hits: BoolArray  # (P, A, T) with a counted one
    truth_images: IntArray  # (N,)
    truth_classes: IntArray  # (N,)
    truths_counted: BoolArray  # (N, A) no crowd and of that size


@dataclass(frozen=True)
class _Truths:
    """Those of all images, sorted by image and class."""

    images: IntArray
    classes: IntArray
    boxes_ltwh: FloatArray
    crowd: BoolArray
    areas: FloatArray

    @property
    def groups(self) -> IntArray:
        return _groups(self.images, self.classes)


@dataclass(frozen=True)
class _Detections:
    """Those of all images, sorted by image, class and falling score (stable)."""

    images: IntArray
    classes: IntArray
    boxes_ltwh: FloatArray
    scores: FloatArray
    ranks: IntArray

    @property
    def groups(self) -> IntArray:
        return _groups(self.images, self.classes)


@dataclass(frozen=True)
class _Pairs:
    """Overlapping pairs, sorted by detection, then falling IoU, then later truths first."""

    detections: IntArray
    truths: IntArray
    ious: FloatArray


def _check_lengths(what: str, boxes_ltwh: FloatArray, *columns: NDArray[np.generic]) -> None:
    shapes = [boxes_ltwh.shape, *(column.shape for column in columns)]
    if boxes_ltwh.shape != (len(boxes_ltwh), 4) or any(s != (len(boxes_ltwh),) for s in shapes[1:]):
        raise ValueError(f"{what} need boxes (n, 4) and n of everything else, got the shapes {shapes}")


def paired_iou(detections_ltwh: FloatArray, truths_ltwh: FloatArray, crowd: BoolArray) -> FloatArray:
    """Overlap of P pairs, (P, 4) and (P, 4) -> (P,). In a crowd: the detection's share in it."""
    far = np.minimum(
        detections_ltwh[:, 2:] + detections_ltwh[:, :2],
        truths_ltwh[:, 2:] + truths_ltwh[:, :2],
    )
    sides = far - np.maximum(detections_ltwh[:, :2], truths_ltwh[:, :2])
    overlaps = (sides > 0).all(axis=1)
    inter = sides[:, 0] * sides[:, 1]
    detection_areas = detections_ltwh[:, 2] * detections_ltwh[:, 3]
    union = detection_areas + truths_ltwh[:, 2] * truths_ltwh[:, 3] - inter
    iou = np.zeros(len(inter))
    np.divide(inter, np.where(crowd, detection_areas, union), out=iou, where=overlaps)
    return iou


def match_images(
    truths: Sequence[ImageTruths],
    detections: Sequence[ImageDetections],
    iou_thresholds: FloatArray = IOU_THRESHOLDS,
    max_detections: int = 100,
) -> Matches:
    """Match the detections of each image with its truths, in COCO's way.

    Per image and class the best ``max_detections`` are kept. Each takes the truth of highest IoU that
    reaches the threshold and is free, a counted truth before an ignored one, the later of equals. A crowd
    is never used up. Detections matched with an ignored truth, and unmatched ones outside the area range,
    are ignored.
    """
    flat_truths, flat_detections = _flatten_truths(truths), _flatten_detections(detections, max_detections)
    ignored = _outside(flat_truths.areas) | flat_truths.crowd[:, None]
    pairs = _overlapping_pairs(flat_detections, flat_truths, float(np.min(iou_thresholds)))
    paired, chosen = _take_greedily(pairs, flat_detections.groups, ignored, flat_truths.crowd, iou_thresholds)
    matched = chosen >= 0
    counted = ~ignored if len(ignored) else np.zeros((1, len(AREA_RANGES)), bool)
    boxes = flat_detections.boxes_ltwh
    return Matches(
        detection_images=flat_detections.images,
        detection_classes=flat_detections.classes,
        scores=flat_detections.scores,
        ranks=flat_detections.ranks,
        in_range=~_outside(boxes[:, 2] * boxes[:, 3]),
        paired=paired,
        matched=matched,
        hits=matched & counted[np.maximum(chosen, 0), np.arange(len(AREA_RANGES))[:, None]],
        truth_images=flat_truths.images,
        truth_classes=flat_truths.classes,
        truths_counted=~ignored,
    )


def _images_and_classes(
    images: Sequence[ImageTruths] | Sequence[ImageDetections],
) -> tuple[IntArray, IntArray]:
    positions = np.repeat(np.arange(len(images), dtype=np.int64), [len(image) for image in images])
    return positions, np.concatenate([image.classes for image in images], dtype=np.int64)


def _flatten_truths(truths: Sequence[ImageTruths]) -> _Truths:
    images, classes = _images_and_classes(truths)
    order = np.lexsort((classes, images))
    return _Truths(
        images[order],
        classes[order],
        np.concatenate([t.boxes_ltwh for t in truths], dtype=np.float64)[order],
        np.concatenate([t.crowd for t in truths], dtype=np.bool_)[order],
        np.concatenate([t.areas for t in truths], dtype=np.float64)[order],
    )


def _flatten_detections(detections: Sequence[ImageDetections], limit: int) -> _Detections:
    images, classes = _images_and_classes(detections)
    scores = np.concatenate([d.scores for d in detections], dtype=np.float64)
    order = np.lexsort((-scores, classes, images))
    ranks = _places_in_runs(_groups(images, classes)[order])
    order, ranks = order[ranks < limit], ranks[ranks < limit]
    boxes_ltwh = np.concatenate([d.boxes_ltwh for d in detections], dtype=np.float64)
    return _Detections(images[order], classes[order], boxes_ltwh[order], scores[order], ranks)


def _groups(images: IntArray, classes: IntArray) -> IntArray:
    """One number per (image, class), rising with image, then class."""
    return (images << 32) + classes


def _places_in_runs(keys: IntArray) -> IntArray:
    """Sorted keys -> 0, 1, 2 ... within each run of equal ones."""
    return np.arange(len(keys)) - np.searchsorted(keys, keys, side="left")


def _outside(areas: FloatArray) -> BoolArray:
    """(n,) areas -> (n, A) whether they miss the range."""
    return (areas[:, None] < AREA_RANGES[:, 0]) | (areas[:, None] > AREA_RANGES[:, 1])


def _overlapping_pairs(detections: _Detections, truths: _Truths, lowest_iou: float) -> _Pairs:
    """All (detection, truth) of one image and class that overlap by ``lowest_iou`` or more."""
    first = np.searchsorted(truths.groups, detections.groups, side="left")
    counts = np.searchsorted(truths.groups, detections.groups, side="right") - first
    left = np.repeat(np.arange(len(counts)), counts)
    right = np.arange(len(left)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    ious = paired_iou(detections.boxes_ltwh[left], truths.boxes_ltwh[right], truths.crowd[right])
    near = np.flatnonzero(ious >= min(lowest_iou, _HIGHEST_IOU))
    order = near[np.lexsort((-right[near], -ious[near], left[near]))]
    return _Pairs(left[order], right[order], ious[order])


def _take_greedily(
    pairs: _Pairs, groups: IntArray, ignored: BoolArray, crowd: BoolArray, iou_thresholds: FloatArray
) -> tuple[BoolArray, IntArray]:
    """Which detections have a pair, (D,), and the truth that each of those takes, or -1: (P, A, T).

    Detections of different groups never compete, so the first of every group is served at once, then the
    second of every group, and so on.
    """
    shape = (ignored.shape[1], len(iou_thresholds))
    free = np.ones((len(ignored), *shape), bool)
    detections, starts, counts = np.unique(pairs.detections, return_index=True, return_counts=True)
    paired = np.zeros(len(groups), bool)
    paired[detections] = True
    chosen = np.empty((len(detections), *shape), np.int64)
    turns = _places_in_runs(groups[detections])
    by_turn = np.argsort(turns, kind="stable")
    for served in np.split(by_turn, np.flatnonzero(np.diff(turns[by_turn])) + 1) if len(by_turn) else ():
        slots = np.arange(counts[served].max())
        places = np.minimum(starts[served, None] + slots, len(pairs.ious) - 1)
        truths, ious = pairs.truths[places], pairs.ious[places]  # (served, slots), best first
        ious = np.where(slots < counts[served, None], ious, -np.inf)[:, :, None, None]
        allowed = free[truths] & (ious >= np.minimum(iou_thresholds, _HIGHEST_IOU))
        counted = allowed & ~ignored[truths][..., None]
        slot = np.where(counted.any(axis=1), counted.argmax(axis=1), allowed.argmax(axis=1))
        taken = truths[np.arange(len(served))[:, None, None], slot]
        taken[~allowed.any(axis=1)] = -1
        chosen[served] = taken
        rows, areas, thresholds = np.nonzero(taken >= 0)
        used = taken[rows, areas, thresholds]
        free[used, areas, thresholds] = crowd[used]
    return paired, chosen
