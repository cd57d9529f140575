from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask

from horovod_yolo.metrics.matching import (
    IOU_THRESHOLDS,
    BoolArray,
    ImageDetections,
    ImageTruths,
    Matches,
    match_images,
    paired_iou,
)
from tests.unit.metrics.references import random_image

BOX = [10.0, 10.0, 40.0, 40.0]


def truths(*boxes: list[float], crowd: list[bool] | None = None, area: float | None = None) -> ImageTruths:
    ltwh = np.array(boxes).reshape(-1, 4)
    areas = ltwh[:, 2] * ltwh[:, 3] if area is None else np.full(len(ltwh), area)
    return ImageTruths(
        ltwh, np.zeros(len(ltwh), np.int64), np.array(crowd or [False] * len(ltwh), bool), areas
    )


def found(*rows: tuple[list[float], float]) -> ImageDetections:
    boxes = np.array([box for box, _ in rows]).reshape(-1, 4)
    return ImageDetections(boxes, np.array([score for _, score in rows]), np.zeros(len(rows), np.int64))


def hits_of(matches: Matches) -> BoolArray:
    """Of all detections, (D, A, T)."""
    hits = np.zeros((len(matches.scores), *matches.hits.shape[1:]), bool)
    hits[matches.paired] = matches.hits
    return hits


def false_alarms_of(matches: Matches) -> BoolArray:
    """Of all detections, (D, A, T)."""
    alarms = np.repeat(matches.in_range[:, :, None], matches.matched.shape[2], axis=2)
    alarms[matches.paired] &= ~matches.matched
    return alarms


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_overlap_equals_pycocotools(seed: int) -> None:
    image, detections = random_image(np.random.default_rng(seed), 3, 8, 8)
    n, m = len(image), len(detections)
    expected = (
        mask.iou(detections.boxes_ltwh, image.boxes_ltwh, image.crowd.astype(np.uint8)) if n and m else []
    )
    pairs = np.indices((m, n)).reshape(2, -1)
    ours = paired_iou(detections.boxes_ltwh[pairs[0]], image.boxes_ltwh[pairs[1]], image.crowd[pairs[1]])
    np.testing.assert_array_equal(ours, np.reshape(expected, -1))


def test_a_truth_is_found_once_and_by_the_best_score() -> None:
    matches = match_images([truths(BOX)], [found((BOX, 0.6), (BOX, 0.9))])
    assert matches.scores.tolist() == [0.9, 0.6]
    assert hits_of(matches)[:, 0].all(axis=1).tolist() == [True, False]
    assert false_alarms_of(matches)[:, 0].all(axis=1).tolist() == [False, True]


def test_of_equal_scores_the_first_wins() -> None:
    shifted = [11.0, 10.0, 40.0, 40.0]
    matches = match_images([truths(BOX)], [found((shifted, 0.5), (BOX, 0.5))])
    assert hits_of(matches)[:, 0, 0].tolist() == [True, False]


def test_the_threshold_is_reached_by_equality() -> None:
    half = [10.0, 10.0, 40.0, 20.0]  # IoU exactly 0.5
    matches = match_images([truths(BOX)], [found((half, 0.5))])
    assert hits_of(matches)[0, 0].tolist() == [True] + [False] * 9


def test_a_crowd_takes_any_number_of_detections_and_none_counts() -> None:
    crowd = truths([0.0, 0.0, 200.0, 200.0], crowd=[True])
    matches = match_images([crowd], [found((BOX, 0.9), ([60.0, 60.0, 20.0, 20.0], 0.8))])
    assert not hits_of(matches).any() and not false_alarms_of(matches).any()
    assert not matches.truths_counted.any()


def test_a_counted_truth_goes_before_an_ignored_one_that_overlaps_more() -> None:
    near = [12.0, 10.0, 40.0, 40.0]
    matches = match_images([truths(BOX, near, crowd=[True, False])], [found((BOX, 0.9))])
    assert hits_of(matches)[0, 0, 0]
    assert (
        not hits_of(matches)[0, 0, -1] and not false_alarms_of(matches)[0, 0, -1]
    )  # near misses 0.95: the crowd it is


def test_sizes_follow_the_area_field_of_truths_and_the_box_of_detections() -> None:
    matches = match_images([truths(BOX, area=100.0)], [found((BOX, 0.9), ([300.0, 300.0, 40.0, 40.0], 0.1))])
    assert matches.truths_counted.tolist() == [[True, True, False, False]]
    hit, stray = range(2)
    assert hits_of(matches)[hit, :, 0].tolist() == [True, True, False, False]
    assert false_alarms_of(matches)[stray, :, 0].tolist() == [
        True,
        False,
        True,
        False,
    ]  # 1600 pixels^2: medium


def test_only_the_best_of_a_class_are_kept() -> None:
    rng = np.random.default_rng(0)
    scores = rng.permutation(250) / 250
    many = ImageDetections(np.tile(BOX, (250, 1)), scores, np.arange(250) % 2)
    matches = match_images([truths(BOX)], [many], max_detections=100)
    for class_id in range(2):
        of_class = matches.detection_classes == class_id
        assert matches.ranks[of_class].tolist() == list(range(100))
        assert matches.scores[of_class].tolist() == sorted(scores[class_id::2], reverse=True)[:100]


def greedy_by_hand(image: ImageTruths, detections: ImageDetections, threshold: float) -> list[bool]:
    """The rule as one would say it: one class, no crowd, all sizes."""
    free, hits = set(range(len(image))), []
    for d in np.argsort(-detections.scores, kind="stable"):
        best, best_iou = None, min(threshold, 1 - 1e-10)
        for g in sorted(free):
            iou = paired_iou(detections.boxes_ltwh[[d]], image.boxes_ltwh[[g]], np.array([False]))[0]
            if iou >= best_iou:
                best, best_iou = g, iou
        hits.append(best is not None)
        free -= {best}
    return hits


@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
@settings(max_examples=60)
def test_equals_the_obvious_loop(seed: int, threshold: int) -> None:
    image, detections = random_image(np.random.default_rng(seed), 1, 8, 12)
    image = ImageTruths(image.boxes_ltwh, image.classes, np.zeros(len(image), bool), image.areas)
    hits = hits_of(match_images([image], [detections]))[:, 0, threshold]
    assert hits.tolist() == greedy_by_hand(image, detections, float(IOU_THRESHOLDS[threshold]))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_images_matched_together_or_alone_are_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, detections = zip(*(random_image(rng, 3, 6, 10) for _ in range(4)), strict=True)
    together = match_images(images, detections)
    alone = [match_images([t], [d]) for t, d in zip(images, detections, strict=True)]
    for field in (
        "scores",
        "ranks",
        "hits",
        "matched",
        "paired",
        "in_range",
        "detection_classes",
        "truths_counted",
    ):
        np.testing.assert_array_equal(
            getattr(together, field), np.concatenate([getattr(one, field) for one in alone])
        )


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"detections need boxes.*\(2, 4\)"):
        ImageDetections(np.zeros((2, 4)), np.zeros(2), np.zeros(1, np.int64))


def test_of_equal_overlaps_the_later_truth_is_taken_and_the_earlier_stays_free() -> None:
    left, right, middle = [0.0, 0.0, 40.0, 40.0], [8.0, 0.0, 40.0, 40.0], [4.0, 0.0, 40.0, 40.0]
    for first, second in ((left, right), (right, left)):
        matches = match_images([truths(first, second)], [found((middle, 0.9), (first, 0.8))])
        assert hits_of(matches)[:, 0, 6].tolist() == [
            True,
            True,
        ]  # at 0.8: the second overlaps `second` by 2 / 3
        matches = match_images([truths(first, second)], [found((middle, 0.9), (second, 0.8))])
        assert hits_of(matches)[:, 0, 6].tolist() == [True, False]


def test_a_limit_of_size_belongs_to_both_sides() -> None:
    exactly = [0.0, 0.0, 32.0, 32.0]
    matches = match_images([truths(exactly)], [found(([100.0, 100.0, 32.0, 32.0], 0.9))])
    assert matches.truths_counted.tolist() == [[True, True, True, False]]
    assert false_alarms_of(matches)[0, :, 0].tolist() == [True, True, True, False]
