"""Non-maximum suppression against the obvious quadratic loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from horovod_yolo.core.boxes import xywh_to_xyxy
from horovod_yolo.core.types import Decoded, Detections
from horovod_yolo.models import candidates, greedy
from horovod_yolo.models import suppression as module
from horovod_yolo.models.candidates import _Marks
from horovod_yolo.models.suppression import Thresholds, best_of_each_place, non_max_suppression
from tests.helpers.pretend_device import NAME, pretend_device

Found = list[tuple[list[float], float, int]]
Select = Callable[[Decoded, Thresholds], list[Detections]]


def slow_iou(a: list[float], b: list[float]) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def slow_nms(rows: Tensor, conf: float, iou: float, limit: int, multi: bool, agnostic: bool) -> Found:
    candidates: Found = []
    for row in rows:
        scores = (row[4] * row[5:]).tolist()
        classes = range(len(scores)) if multi else [scores.index(max(scores))]
        x, y, w, h = row[:4]
        box = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2)).tolist()
        candidates += [(box, scores[c], c) for c in classes if scores[c] > conf]
    kept: Found = []
    for box, score, cls in sorted(candidates, key=lambda c: -c[1]):  # sorted is stable
        if all(slow_iou(box, b) <= iou or (cls != c and not agnostic) for b, _, c in kept):
            kept.append((box, score, cls))
    return kept[:limit]


def suppressed(
    rows: Tensor,
    conf: float = 0.001,
    iou: float = 0.6,
    most: int = 300,
    multi: bool = True,
    agnostic: bool = False,
) -> list[Detections]:
    """Of (B, M, 5 + C) boxes_xywh, objectness and classes."""
    decoded = Decoded(xywh_to_xyxy(rows[..., :4]), rows[..., 4:5] * rows[..., 5:])
    thresholds = Thresholds(confidence=conf, iou=iou, most=most, multi_label=multi, agnostic=agnostic)
    return non_max_suppression(decoded, thresholds)


def make_rows(count: int, classes: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    rows = torch.rand(count, 5 + classes, generator=rng)
    rows[:, :2] = rows[:, :2] * 60 + 20
    rows[:, 2:4] = rows[:, 2:4] * 40 + 4
    rows[:, 4:] = (rows[:, 4:] * 8).round() / 8  # many equal scores, many zeros
    return rows


@settings(max_examples=200)
@given(
    st.integers(0, 60),
    st.integers(1, 4),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.05, 0.25, 1 / 3, 0.5, 0.6, 0.9, 1.0]),
    st.sampled_from([1, 3, 300]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 5, 16]),
    st.booleans(),
)
def test_equals_the_obvious_loop(
    count: int,
    classes: int,
    seed: int,
    iou: float,
    limit: int,
    multi: bool,
    agnostic: bool,
    portion: int,
    whole: bool,
) -> None:
    """Also in small portions, and with boxes of whole pixels: many overlap by exactly the threshold."""
    batch = torch.stack([make_rows(count, classes, seed + image) for image in range(2)])
    if whole:
        batch[..., :4] = (batch[..., :4] / 4).round() * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FIRST", portion)
        patch.setattr(greedy, "PAIRS", 50 * portion)
        patch.setattr(candidates, "SORTED_FIRST", 3 * portion)
        both = suppressed(batch, 0.1, iou, limit, multi, agnostic)
    for rows, found in zip(batch, both, strict=True):
        expected = slow_nms(rows, 0.1, iou, limit, multi, agnostic)
        assert found.boxes_xyxy.tolist() == [box for box, _, _ in expected]
        assert found.scores.tolist() == [score for _, score, _ in expected]
        assert found.classes.tolist() == [cls for _, _, cls in expected]


@pytest.mark.parametrize("portion", [1, 16])
@pytest.mark.parametrize(("limit", "survivors"), [(0.5, 2), (0.4999, 1)])
def test_an_overlap_of_exactly_the_threshold_is_no_reason_to_drop(
    monkeypatch: pytest.MonkeyPatch, portion: int, limit: float, survivors: int
) -> None:
    """In one portion and over two: half of the larger box is the smaller one, IoU 1/2 in every format."""
    monkeypatch.setattr(module, "FIRST", portion)
    rows = torch.tensor([[[2.0, 1.0, 4.0, 2.0, 1.0, 0.9], [1.0, 1.0, 2.0, 2.0, 1.0, 0.8]]])
    assert len(suppressed(rows, iou=limit)[0]) == survivors


@pytest.mark.parametrize("iou", [0.0, 0.3])
@pytest.mark.parametrize("spread", [1.0, 1e30])
def test_more_candidates_than_a_portion(iou: float, spread: float) -> None:
    """Of all sizes and in all places, one of them far away."""
    rows = make_rows(700, 1, seed=1)
    rows[:, 2:4] = torch.exp(torch.randn(len(rows), 2, generator=torch.Generator().manual_seed(0)) * 3)
    rows[0, 0] *= spread
    rows[:, 5:] = 1.0
    (found,) = suppressed(rows[None], 0.1, iou, 10_000)
    expected = slow_nms(rows, 0.1, iou, 10_000, True, False)
    assert 3 < len(expected) < len(rows)
    assert found.boxes_xyxy.tolist() == [box for box, _, _ in expected]


@pytest.mark.parametrize(
    ("places", "found", "lacking", "expected"),
    [
        ((100, 200), [10], [8], 300),  # a tenth of the last hundred, and a quarter more
        ((100, 200), [10], [1], 250),
        ((100, 200), [10], [1000], 1600),
        ((100, 200), [0], [1], 325),
        ((100, 200), [10, 10, 10], [1, 8, 900], 300),
        ((0, 1), [1], [1], 3),
    ],
)
def test_about_as_many_are_looked_at_next_as_are_needed(
    places: tuple[int, int], found: list[int], lacking: list[int], expected: int
) -> None:
    assert module._next_last(*places, np.array(found), np.array(lacking)) == expected


def test_images_do_not_influence_each_other() -> None:
    batch = torch.stack([make_rows(40, 3, seed) for seed in range(3)])
    together = suppressed(batch)
    for rows, found in zip(batch, together, strict=True):
        (alone,) = suppressed(rows[None])
        assert torch.equal(found.boxes_xyxy, alone.boxes_xyxy)
        assert torch.equal(found.scores, alone.scores)


def test_equal_scores_keep_the_earlier_candidate() -> None:
    box = [50.0, 50.0, 20.0, 20.0]
    rows = torch.tensor([[*box, 0.5, 0.5], [51.0, *box[1:], 0.5, 0.5], [49.0, *box[1:], 0.5, 0.5]])
    (found,) = suppressed(rows[None])
    assert found.boxes_xyxy.tolist() == [[40, 40, 60, 60]]


def test_rows_that_are_not_finite_are_left_out() -> None:
    rows = make_rows(6, 2, seed=3)
    rows[:, 4:] = 0.5
    bad = rows.clone()
    bad[1, 0], bad[2, 3], bad[3, 4], bad[4, 6] = math.nan, math.inf, math.nan, math.nan
    (found,) = suppressed(bad[None], iou=1.0)
    (expected,) = suppressed(rows[None, [0, 5]], iou=1.0)
    assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)


def test_only_the_best_candidates_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(50, 2, seed=4)
    rows[:, 4] = 1.0
    rows[:, 5:] = torch.linspace(0.1, 0.9, 100).view(50, 2)
    monkeypatch.setattr(module, "MAX_CANDIDATES", 7)
    (found,) = suppressed(rows[None], iou=1.0)
    assert torch.equal(found.scores, rows[:, 5:].flatten().sort(descending=True).values[:7])


def test_nothing_found_has_the_right_shapes() -> None:
    for rows in (torch.zeros(1, 0, 8), torch.zeros(1, 5, 8)):
        for multi in (True, False):
            (found,) = suppressed(rows, multi=multi)
            assert len(found) == 0
            assert found.boxes_xyxy.shape == (0, 4)
            assert (found.scores.dtype, found.classes.dtype) == (torch.float32, torch.int64)


def test_many_classes_cost_no_precision() -> None:
    """Overlap at the 79th class is judged as at class 0: 0.59998 and 0.60002 around a limit of 0.6."""
    for iou, survivors in ((0.59998, 2), (0.60002, 1)):
        shift = 10 * (1 - iou) / (1 + iou)
        for cls in (0, 79):
            rows = torch.zeros(2, 85)
            rows[0, :5] = torch.tensor([600.0, 600.0, 10.0, 10.0, 1.0])
            rows[1, :5] = torch.tensor([600.0 + shift, 600.0, 10.0, 10.0, 0.9])
            rows[:, 5 + cls] = 0.9
            assert len(suppressed(rows[None])[0]) == survivors


@pytest.mark.parametrize("portion", [2, candidates.FROM_DEVICE])
@pytest.mark.parametrize(("multi", "most"), [(True, 300), (False, 300), (True, 5)])
def test_a_device_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, portion: int, multi: bool, most: int
) -> None:
    monkeypatch.setattr(module, "FIRST", 2)
    monkeypatch.setattr(candidates, "FROM_DEVICE", portion)
    batch = torch.stack([make_rows(60, 3, seed) for seed in range(3)])
    batch[1, 4:, 4] = 0.0
    batch[2, 5, 0] = batch[0, 7, 6] = math.nan
    expected = suppressed(batch, 0.3, multi=multi, most=most)
    with pretend_device():
        found = suppressed(batch.to(NAME), 0.3, multi=multi, most=most)
    for here, there in zip(expected, found, strict=True):
        assert torch.equal(here.boxes_xyxy, there.boxes_xyxy)
        assert torch.equal(here.scores, there.scores)
        assert torch.equal(here.classes, there.classes)


@pytest.mark.parametrize(("select", "waits"), [(non_max_suppression, 3), (best_of_each_place, 1)])
def test_a_device_is_not_asked_image_by_image(select: Select, waits: int) -> None:
    with pretend_device() as log:
        for images in (1, 5):
            rows = torch.stack([make_rows(40, 3, seed) for seed in range(images)]).to(NAME)
            decoded = Decoded(xywh_to_xyxy(rows[..., :4]), rows[..., 4:5] * rows[..., 5:])
            log.clear()
            assert sum(map(len, select(decoded, Thresholds()))) > images
            assert len(log.waits) == waits, log.waits


def test_a_batch_without_images() -> None:
    assert suppressed(torch.zeros(0, 5, 8)) == []


@pytest.mark.parametrize("shape", [(25_200, 3), (9_001, 11), (70_001, 1), (40, 7), (0, 5)])
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 0.999, 1.0])
def test_marks_are_found_by_eights_as_one_by_one(shape: tuple[int, int], threshold: float) -> None:
    rng, marks = np.random.default_rng(0), _Marks(math.prod(shape) + 9)
    for _ in range(2):  # the second time in used memory
        scores = rng.random(shape, np.float32)
        expected = np.flatnonzero(scores > threshold)
        np.testing.assert_array_equal(marks.above(scores, threshold), expected)
