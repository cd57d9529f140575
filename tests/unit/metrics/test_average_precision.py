from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.metrics import average_precision as ap


def by_definition(hits: np.ndarray, wrong: np.ndarray, positives: int) -> list[float]:
    """COCO's precision at its recall points, detection by detection, as pycocotools writes it down."""
    found, alarms, precision, recall = 0, 0, [], []
    for hit, alarm in zip(hits.tolist(), wrong.tolist(), strict=True):
        found, alarms = found + hit, alarms + alarm
        precision.append(found / (alarms + found + np.spacing(1)))
        recall.append(found / positives)
    return [
        max((p for p, r in zip(precision, recall, strict=True) if r >= point), default=0.0)
        for point in ap.RECALL_POINTS
    ]


@given(st.lists(st.lists(st.sampled_from("hfi"), max_size=30), min_size=1, max_size=3), st.integers(0, 3))
@settings(max_examples=100)
def test_precision_at_recall_is_by_definition(rows: list[str], missed: int) -> None:
    hits, wrong = ([np.array([kind == letter for kind in row], bool) for row in rows] for letter in "hf")
    most = max(int(row.sum()) for row in hits)
    positives = most + missed
    at_hits = np.full((len(rows), most), 7.0)  # what stands behind the last hit is not read
    for place, (row, alarms) in enumerate(zip(hits, wrong, strict=True)):
        at_hits[place, : row.sum()] = np.cumsum(alarms)[row]
    precision = ap.interpolated_precision(at_hits, np.array([row.sum() for row in hits]), positives)
    if positives:
        expected = [by_definition(row, alarms, positives) for row, alarms in zip(hits, wrong, strict=True)]
        np.testing.assert_array_equal(precision, expected)
    else:
        assert (precision == ap.UNDEFINED).all()


def test_one_of_two_found_fills_51_of_101_points() -> None:
    precision = ap.interpolated_precision(np.zeros((1, 1)), np.array([1]), 2)
    assert precision.mean() == pytest.approx(51 / 101, abs=1e-12)


def test_nothing_found_is_zero_and_nothing_to_find_is_undefined() -> None:
    nothing, none = np.zeros((3, 0)), np.zeros(3, np.int64)
    assert (ap.interpolated_precision(nothing, none, 5) == 0).all()
    assert (ap.interpolated_precision(nothing, none, 0) == ap.UNDEFINED).all()
    assert (ap.final_recall(none, 5) == 0).all()
    assert (ap.final_recall(none, 0) == ap.UNDEFINED).all()
    assert ap.final_recall(np.array([2, 0]), 4).tolist() == [0.5, 0]


def test_means_leave_the_undefined_out() -> None:
    assert ap.mean_of_defined(np.array([-1.0, 0.0, 0.5])) == 0.25
    assert ap.mean_of_defined(np.array([-1.0])) == ap.UNDEFINED


@given(st.lists(st.tuples(st.integers(0, 10), st.sampled_from("hfi")), max_size=30), st.integers(0, 5))
@settings(max_examples=60)
def test_precision_and_recall_by_confidence_equal_counting(rows: list[tuple[int, str]], missed: int) -> None:
    rows = sorted(rows, reverse=True)
    scores = np.array([score / 10 for score, _ in rows])
    hits, wrong = (np.array([kind == letter for _, kind in rows], bool) for letter in "hf")
    positives = int(hits.sum()) + missed
    precision, recall = ap.precision_recall_by_confidence(scores, hits, wrong, positives)
    for place in range(0, 1000, 37):
        kept = scores >= ap.CONFIDENCE_POINTS[place]
        found, all_kept = (hits & kept).sum(), ((hits | wrong) & kept).sum()
        assert precision[place] == (found / all_kept if all_kept else 0)
        assert recall[place] == (found / positives if positives else 0)


def test_best_confidence_is_that_of_the_mean_over_classes() -> None:
    # Alone, the first class is best at the first point and the second at the last; together the middle wins.
    precision = np.array([[1.0, 0.9, 0.0], [0.0, 0.9, 1.0]])
    assert ap.best_confidence(precision, precision) == 1


def test_f1_of_nothing_is_zero() -> None:
    np.testing.assert_allclose(
        ap.f1_score(np.array([0.0, 1.0, 0.5]), np.array([0.0, 0.5, 0.5])), [0, 2 / 3, 0.5]
    )
