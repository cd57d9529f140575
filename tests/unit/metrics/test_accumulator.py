from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.metrics import accumulator as accumulator_module
from horovod_yolo.metrics.accumulator import DetectionAccumulator, DetectionSummary
from horovod_yolo.metrics.matching import ImageDetections, ImageTruths
from tests.unit.metrics.references import Sample, accumulate, coco_files, pycocotools_evaluation, random_image


def image(truths: list[tuple[int, int]], found: list[tuple[int, int, float]]) -> Sample:
    """Truths as (class, place), detections as (class, place, score); different places do not overlap."""

    def boxes(places: list[int]) -> np.ndarray:
        return np.array([[100.0 * place, 0.0, 50.0, 50.0] for place in places]).reshape(-1, 4)

    n = len(truths)
    return (
        ImageTruths(
            boxes([p for _, p in truths]), np.array([c for c, _ in truths], np.int64), np.zeros(n, bool),
            np.full(n, 2500.0),
        ),
        ImageDetections(
            boxes([p for _, p, _ in found]), np.array([s for _, _, s in found], float),
            np.array([c for c, _, _ in found], np.int64),
        ),
    )  # fmt: skip


def assert_same(ours: DetectionSummary, other: DetectionSummary) -> None:
    assert ours.per_class == other.per_class
    assert ours.coco == other.coco
    scalars = ("precision", "recall", "map50", "map50_95", "confidence", "images", "instances")
    assert [getattr(ours, name) for name in scalars] == [getattr(other, name) for name in scalars]
    for name in ("precision_at_recall", "precision", "recall_at_confidence", "f1"):
        np.testing.assert_array_equal(getattr(ours.curves, name), getattr(other.curves, name))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 8), st.sampled_from([3, 15, 60]))
@settings(max_examples=40)
def test_equals_pycocotools_on_random_images(seed: int, classes: int, images: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [random_image(rng, classes, 12, most) for _ in range(images)]
    summary = accumulate(samples, classes).summary()
    expected = pycocotools_evaluation(*coco_files(samples, classes))
    np.testing.assert_allclose(list(summary.coco.values()), expected.stats, rtol=0, atol=1e-12)
    per_class = expected.eval["precision"][:, :, :, 0, 2]
    np.testing.assert_allclose(
        [c.ap50_95 for c in summary.per_class], per_class.mean((0, 1)), rtol=0, atol=1e-12
    )
    np.testing.assert_allclose([c.ap50 for c in summary.per_class], per_class[0].mean(0), rtol=0, atol=1e-12)


def test_equals_pycocotools_beyond_100_detections_a_class() -> None:
    rng = np.random.default_rng(0)
    samples = [random_image(rng, 2, 30, 600) for _ in range(4)]
    assert max(np.bincount(found.classes).max() for _, found in samples) > 100
    summary = accumulate(samples, 2).summary()
    expected = pycocotools_evaluation(*coco_files(samples, 2)).stats
    np.testing.assert_allclose(list(summary.coco.values()), expected, rtol=0, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.data())
@settings(max_examples=30)
def test_neither_split_nor_order_matters(seed: int, ranks: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    samples = [random_image(rng, 4, 6, 12) for _ in range(9)]
    order = data.draw(st.permutations(range(9)))
    share = data.draw(st.lists(st.integers(0, ranks - 1), min_size=9, max_size=9))
    states = [
        accumulate(samples, 4, [i for i, owner in zip(order, share, strict=True) if owner == rank]).state()
        for rank in data.draw(st.permutations(range(ranks)))
    ]
    assert_same(DetectionAccumulator.merged(4, states).summary(), accumulate(samples, 4).summary())


def test_the_number_of_images_matched_together_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    samples = [random_image(rng, 3, 8, 20) for _ in range(12)]
    at_once = accumulate(samples, 3).summary()
    monkeypatch.setattr(accumulator_module, "_FLUSH_AT", 1)
    assert_same(accumulate(samples, 3).summary(), at_once)


def test_adding_goes_on_after_a_state_and_after_a_merge() -> None:
    rng = np.random.default_rng(5)
    samples = [random_image(rng, 3, 8, 20) for _ in range(6)]
    first = accumulate(samples, 3, [0, 1])
    first.state()
    first.add(2, *samples[2])
    merged = DetectionAccumulator.merged(3, [first.state()])
    for i in (3, 4, 5):
        merged.add(i, *samples[i])
    assert_same(merged.summary(), accumulate(samples, 3).summary())


def test_states_are_plain_and_small() -> None:
    rng = np.random.default_rng(1)
    accumulator = accumulate([random_image(rng, 5, 10, 100) for _ in range(50)], 5)
    state = accumulator.state()
    assert all(type(column) is np.ndarray and column.dtype.kind in "iuf" for column in state.values())
    detections, paired, truths = (len(state[name]) for name in ("scores", "outcomes", "truth_classes"))
    assert detections > 1000
    of_all = 18 * detections + 10 * paired + 5 * truths + 32 * 50
    assert sum(column.nbytes for column in state.values()) <= of_all + 104


def test_an_image_counts_once() -> None:
    rng = np.random.default_rng(2)
    samples = [random_image(rng, 3, 4, 4) for _ in range(3)]
    accumulator = accumulate(samples, 3)
    with pytest.raises(ValueError, match="image 1 was added twice"):
        accumulator.add(1, *samples[1])
    with pytest.raises(ValueError, match="image 2 was added twice"):
        DetectionAccumulator.merged(3, [accumulator.state(), accumulate(samples, 3, [2]).state()])
    with pytest.raises(ValueError, match="image 0 was added twice"):
        DetectionAccumulator.merged(3, [accumulator.state()]).add(0, *samples[0])


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="no state"):
        DetectionAccumulator.merged(3, [])
    with pytest.raises(ValueError, match="IoU threshold"):
        DetectionAccumulator(3, iou_thresholds=[0.75])
    with pytest.raises(ValueError, match=r"image 7 has a class outside 0\.\.1"):
        DetectionAccumulator(2).add(7, *image([(2, 0)], []))
    with pytest.raises(ValueError, match="different IoU thresholds"):
        DetectionAccumulator.merged(
            1, [DetectionAccumulator(1, [0.5]).state(), DetectionAccumulator(1).state()]
        )


def test_perfect_detections_score_one() -> None:
    rows = [(0, 0), (1, 1), (1, 2)]
    summary = accumulate([image(rows, [(c, p, 0.9) for c, p in rows])], 2).summary()
    assert summary.coco["AP"] == pytest.approx(1.0, abs=1e-12)
    assert (summary.precision, summary.recall) == (1.0, 1.0)
    assert summary.map50_95 == pytest.approx(1.0, abs=1e-12)


def test_one_of_two_missing() -> None:
    summary = accumulate([image([(0, 0), (0, 1)], [(0, 0, 0.9)])], 1).summary()
    assert summary.coco["AP"] == pytest.approx(51 / 101, abs=1e-12)
    assert summary.coco["AR100"] == 0.5
    assert summary.coco["APs"] == -1


def test_precision_and_recall_at_the_best_mean_f1_by_hand() -> None:
    truths = [(0, 0), (0, 1), (1, 2), (1, 3)]
    found = [(0, 0, 0.9), (0, 1, 0.6), (0, 7, 0.5), (1, 2, 0.8), (1, 8, 0.7), (1, 3, 0.55), (1, 9, 0.2)]
    # From 0.5 to 0.55: class 0 P 1 R 1 (its false alarm is at 0.5), class 1 P 2/3 R 1, mean F1 0.9.
    # At 0.5: 0.8 both. At 0.6: 1 and 0.5. At 0.7: 2/3 and 0.5. At 0.8: 2/3 and 2/3. All are below 0.9.
    summary = accumulate([image(truths, found)], 2).summary()
    assert summary.confidence == pytest.approx(0.501, abs=1e-3)
    assert [(c.precision, c.recall) for c in summary.per_class] == [(1.0, 1.0), (pytest.approx(2 / 3), 1.0)]
    assert (summary.precision, summary.recall) == (pytest.approx(5 / 6), 1.0)


def test_classes_without_instances_are_undefined_and_out_of_the_means() -> None:
    summary = accumulate([image([(1, 0)], [(1, 0, 0.9), (2, 3, 0.95)]), image([], [])], 4).summary()
    assert [(c.images, c.instances) for c in summary.per_class] == [(0, 0), (1, 1), (0, 0), (0, 0)]
    assert [c.ap50 for c in summary.per_class] == [-1, pytest.approx(1), -1, -1]
    assert [c.precision for c in summary.per_class] == [-1, 1, -1, -1]
    assert (summary.precision, summary.map50) == (1.0, pytest.approx(1.0))
    assert (summary.images, summary.instances) == (2, 1)
    assert not summary.curves.f1[[0, 2, 3]].any()


@pytest.mark.parametrize("samples", [[], [image([], [])], [image([], [(0, 0, 0.9)])]])
def test_nothing_to_find(samples: list[Sample]) -> None:
    summary = accumulate(samples, 2).summary()
    assert set(summary.coco.values()) == {-1.0}
    assert (summary.precision, summary.recall, summary.map50, summary.map50_95) == (0, 0, 0, 0)
    assert summary.images == len(samples)
