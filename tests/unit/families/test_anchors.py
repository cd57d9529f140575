"""The anchor check: recall by definition, and fits that recover what the boxes were made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.families.anchor_based.anchors import best_possible_recall, check_anchors, fit_anchors
from horovod_yolo.families.anchor_based.family import ANCHORS_P5

sides = st.floats(0.5, 1000)
sizes = st.lists(st.tuples(sides, sides), min_size=1, max_size=20)


@given(sizes, sizes, st.floats(1.1, 8))
def test_recall_equals_the_loop(
    boxes: list[tuple[float, float]], anchors: list[tuple[float, float]], threshold: float
) -> None:
    hits = sum(
        any(min(w / aw, aw / w, h / ah, ah / h) > 1 / threshold for aw, ah in anchors) for w, h in boxes
    )
    assert best_possible_recall(boxes, anchors, threshold) == hits / len(boxes)


def test_recall_of_nothing_and_of_boxes_without_width() -> None:
    assert best_possible_recall(np.empty((0, 2)), ANCHORS_P5) == 1.0
    assert best_possible_recall([[0.0, 5.0], [20.0, 20.0]], ANCHORS_P5) == 0.5


def clusters(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.array(
        [[6, 8], [14, 10], [12, 30], [40, 36], [60, 20], [50, 110], [150, 90], [200, 220], [400, 380]]
    )
    return centres, np.repeat(centres, 60, axis=0) * rng.normal(1, 0.04, (540, 2))


def test_fit_recovers_clusters() -> None:
    centres, boxes = clusters(0)
    found = fit_anchors(boxes, levels=3, generations=200)
    assert found.shape == (3, 3, 2)
    by_area = centres[np.argsort(centres.prod(axis=1))]
    np.testing.assert_allclose(found.reshape(-1, 2), by_area, rtol=0.08)


def test_fit_is_sorted_and_repeatable() -> None:
    _, boxes = clusters(1)
    first, again = (fit_anchors(boxes, 3, seed=5, generations=50) for _ in range(2))
    assert np.array_equal(first, again)
    assert (np.diff(first.reshape(-1, 2).prod(axis=1)) >= 0).all()
    assert not np.array_equal(first, fit_anchors(boxes, 3, seed=6, generations=50))


def test_a_large_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    centres, boxes = clusters(2)
    monkeypatch.setattr("horovod_yolo.families.anchor_based.anchors.FIT_SAMPLE", 300)
    found = fit_anchors(boxes, 3, generations=100)
    np.testing.assert_allclose(found.reshape(-1, 2), centres[np.argsort(centres.prod(axis=1))], rtol=0.1)


def mean_closeness(boxes: np.ndarray, anchors: np.ndarray) -> float:
    ratio = boxes[:, None] / anchors.reshape(1, -1, 2)
    return float(np.minimum(ratio, 1 / ratio).min(axis=2).max(axis=1).mean())


def test_generations_improve_on_k_means() -> None:
    boxes = np.random.default_rng(3).lognormal(3.5, 0.9, (800, 2)).clip(2, 600)
    start, refined = (fit_anchors(boxes, 3, threshold=1e9, generations=g) for g in (0, 300))
    assert mean_closeness(boxes, refined) > mean_closeness(boxes, start)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 3))
def test_any_boxes_give_usable_anchors(seed: int, distinct: int, levels: int) -> None:
    """Also where there are fewer kinds of boxes than anchors."""
    rng = np.random.default_rng(seed)
    boxes = np.repeat(rng.uniform(2, 300, (distinct, 2)), 30, axis=0)
    found = fit_anchors(boxes, levels, generations=5)
    assert found.shape == (levels, 3, 2)
    assert np.isfinite(found).all() and (found >= 2).all()


def test_too_few_boxes() -> None:
    boxes = np.full((8, 2), 9.0)
    with pytest.raises(ValueError, match="8 boxes are too few to fit 9 anchors"):
        fit_anchors(boxes, 3)
    report = check_anchors(boxes / 10, ANCHORS_P5)
    assert report.recall == 0.0 and report.anchors is None


def test_good_anchors_are_kept() -> None:
    boxes = np.repeat(np.array(ANCHORS_P5).reshape(-1, 2), 20, axis=0)
    report = check_anchors(boxes, ANCHORS_P5)
    assert (report.recall, report.anchors, report.fitted_recall) == (1.0, None, None)


def test_bad_anchors_are_replaced() -> None:
    boxes = np.random.default_rng(4).uniform([2, 300], [6, 600], (500, 2))  # thin poles
    report = check_anchors(boxes, ANCHORS_P5, generations=50)
    assert report.recall < 0.5
    assert report.anchors is not None and report.anchors.shape == (3, 3, 2)
    assert report.fitted_recall == best_possible_recall(boxes, report.anchors) > 0.99


def test_a_fit_that_is_no_better_is_not_proposed() -> None:
    boxes = np.concatenate((np.full((90, 2), 20.0), np.full((10, 2), 0.5)))  # the small ones count as noise
    report = check_anchors(boxes, ANCHORS_P5, generations=5)
    assert report.recall == report.fitted_recall == 0.9
    assert report.anchors is None
