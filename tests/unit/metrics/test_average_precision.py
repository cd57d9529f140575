from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.metrics import average_precision as ap


def test_perfect_is_one() -> None:
    precision = ap.interpolated_precision(np.ones((1, 4), bool), np.zeros((1, 4), bool), 4)
    assert precision.mean() == pytest.approx(1.0, abs=1e-12)


def test_one_of_two_found_fills_51_of_101_points() -> None:
    precision = ap.interpolated_precision(np.ones((1, 1), bool), np.zeros((1, 1), bool), 2)
    assert precision.mean() == pytest.approx(51 / 101, abs=1e-12)


def test_precision_is_the_best_at_this_recall_or_a_higher_one() -> None:
    hits = np.array([[False, True, True]])
    precision = ap.interpolated_precision(hits, ~hits, 2)
    np.testing.assert_allclose(precision, 2 / 3, rtol=1e-12)


def test_nothing_found_is_zero_and_nothing_to_find_is_undefined() -> None:
    nothing = np.zeros((3, 0), bool)
    assert (ap.interpolated_precision(nothing, nothing, 5) == 0).all()
    assert (ap.interpolated_precision(nothing, nothing, 0) == ap.UNDEFINED).all()
    assert (ap.final_recall(nothing, 5) == 0).all()
    assert (ap.final_recall(nothing, 0) == ap.UNDEFINED).all()


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
