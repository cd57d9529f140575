"""Box conversions undo each other; overlaps agree with counting pixels and with the published formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from horovod_yolo.core.boxes import (
    area,
    complete_iou,
    ltwh_to_xyxy,
    pairwise_iou,
    xywh_to_xyxy,
    xyxy_to_ltwh,
    xyxy_to_xywh,
)

CORNERS = [10.0, 20.0, 40.0, 80.0]
CENTRE = [25.0, 50.0, 30.0, 60.0]
LEFT_TOP = [10.0, 20.0, 30.0, 60.0]


@pytest.mark.parametrize(
    ("convert", "given_", "expected"),
    [
        (xywh_to_xyxy, CENTRE, CORNERS),
        (xyxy_to_xywh, CORNERS, CENTRE),
        (ltwh_to_xyxy, LEFT_TOP, CORNERS),
        (xyxy_to_ltwh, CORNERS, LEFT_TOP),
    ],
)
def test_known_boxes(convert: Callable[[Any], Any], given_: list[float], expected: list[float]) -> None:
    for shape in ((4,), (1, 4), (2, 3, 4)):
        array = np.broadcast_to(np.array(given_, np.float32), shape)
        result = convert(array)
        assert isinstance(result, np.ndarray) and result.dtype == np.float32
        np.testing.assert_array_equal(result, np.broadcast_to(expected, shape))
        tensor = torch.from_numpy(array.copy())
        assert torch.equal(convert(tensor), torch.tensor(expected).expand(shape))
    for empty in (np.zeros((0, 4)), torch.zeros(0, 4)):
        assert convert(empty).shape == (0, 4)


boxes_ltwh = st.lists(
    st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(0, 12)] * 2), min_size=1, max_size=6
).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


@given(boxes_ltwh)
def test_conversions_undo_each_other(boxes: Tensor) -> None:
    corners = ltwh_to_xyxy(boxes)
    assert torch.equal(xyxy_to_ltwh(corners), boxes)
    assert torch.equal(xywh_to_xyxy(xyxy_to_xywh(corners)), corners)
    assert torch.equal(area(corners), boxes[:, 2] * boxes[:, 3])


def pixels(box: Tensor) -> Tensor:
    canvas = torch.zeros(50, 50, dtype=torch.bool)
    left, top, right, bottom = (int(v) for v in box)
    canvas[top:bottom, left:right] = True
    return canvas


@given(boxes_ltwh, boxes_ltwh)
def test_overlap_is_the_share_of_common_pixels(a: Tensor, b: Tensor) -> None:
    a, b = ltwh_to_xyxy(a), ltwh_to_xyxy(b)
    result = pairwise_iou(a, b)
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            common = int((pixels(one) & pixels(other)).sum())
            union = int((pixels(one) | pixels(other)).sum())
            assert float(result[i, j]) == pytest.approx(common / union if union else 0.0)


def test_overlap_of_nothing() -> None:
    assert pairwise_iou(torch.zeros(0, 4), torch.ones(3, 4)).shape == (0, 3)
    assert pairwise_iou(torch.ones(2, 4), torch.zeros(0, 4)).shape == (2, 0)
    upside_down = torch.tensor([[5.0, 5.0, 2.0, 2.0]])
    assert pairwise_iou(upside_down, upside_down).item() == 0


positive = st.floats(0.5, 50)
pairs = st.lists(
    st.tuples(*[st.floats(-50, 50)] * 2, positive, positive, *[st.floats(-50, 50)] * 2, positive, positive),
    min_size=1,
    max_size=4,
).map(lambda rows: torch.tensor(rows, dtype=torch.float64).reshape(-1, 2, 4).unbind(1))


@given(pairs)
def test_complete_iou_against_the_formula(boxes: tuple[Tensor, Tensor]) -> None:
    a, b = boxes
    result = complete_iou(a, b)
    ious = pairwise_iou(xywh_to_xyxy(a), xywh_to_xyxy(b)).diagonal()
    for k, iou in enumerate(ious.tolist()):
        (ax, ay, aw, ah), (bx, by, bw, bh) = a[k].tolist(), b[k].tolist()
        width = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
        height = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
        distance = ((ax - bx) ** 2 + (ay - by) ** 2) / (width**2 + height**2)
        v = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
        alpha = v / (1 - iou + v) if v else 0.0
        assert result[k].item() == pytest.approx(iou - distance - alpha * v, abs=1e-5)


@given(pairs)
def test_complete_iou_is_at_most_one_and_one_for_equal_boxes(boxes: tuple[Tensor, Tensor]) -> None:
    a, b = boxes
    assert (complete_iou(a, b) <= 1).all()
    torch.testing.assert_close(complete_iou(a, a), torch.ones(len(a), dtype=a.dtype), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("box", "goal"),
    [
        ([0.0, 0.0, 10.0, 40.0], [2.0, 1.0, 30.0, 12.0]),
        ([5.0, -3.0, 25.0, 8.0], [1.0, 1.0, 9.0, 16.0]),
        ([0.0, 0.0, 4.0, 9.0], [50.0, 20.0, 9.0, 4.0]),
    ],
)
def test_the_slope_of_complete_iou_takes_alpha_as_a_constant(box: list[float], goal: list[float]) -> None:
    """Zheng et al., 2020, after equation 10: the trade-off is no part of what is learned."""
    eps = 1e-7

    def aspect_term(b: list[float]) -> float:
        return 4 / math.pi**2 * (math.atan(goal[2] / goal[3]) - math.atan(b[2] / b[3])) ** 2

    b = torch.tensor([goal], dtype=torch.float64)

    def overlap_of(a: list[float]) -> float:
        return pairwise_iou(xywh_to_xyxy(torch.tensor([a], dtype=torch.float64)), xywh_to_xyxy(b)).item()

    alpha = aspect_term(box) / (1 - overlap_of(box) + aspect_term(box))

    def with_constant_alpha(a: list[float]) -> float:
        corners = [
            (
                min(a[k] - a[k + 2] / 2, goal[k] - goal[k + 2] / 2),
                max(a[k] + a[k + 2] / 2, goal[k] + goal[k + 2] / 2),
            )
            for k in (0, 1)
        ]
        diagonal2 = sum((high - low) ** 2 for low, high in corners)
        distance2 = sum((a[k] - goal[k]) ** 2 for k in (0, 1))
        return overlap_of(a) - distance2 / diagonal2 - alpha * aspect_term(a)

    a = torch.tensor([box], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(complete_iou(a, b, eps).sum(), a)
    for k in range(4):
        step = 1e-5
        up, down = ([*box[:k], box[k] + side, *box[k + 1 :]] for side in (step, -step))
        slope = (with_constant_alpha(up) - with_constant_alpha(down)) / (2 * step)
        assert gradient[0, k].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_complete_iou_pulls_boxes_together() -> None:
    """Boxes far apart have no overlap to improve, yet a gradient that leads to each other."""
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]], requires_grad=True)
    b = torch.tensor([[100.0, 0.0, 10.0, 10.0]])
    for _ in range(300):
        (gradient,) = torch.autograd.grad(complete_iou(a, b).sum(), a)
        assert gradient.isfinite().all()
        a = (a + 100 * gradient).detach().requires_grad_()
    assert abs(a[0, 0].item() - 100) < 5
    assert pairwise_iou(xywh_to_xyxy(a), xywh_to_xyxy(b)).item() > 0


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e6])
def test_complete_iou_of_extreme_sizes_is_finite(size: float) -> None:
    a = torch.tensor([[0.0, 0.0, size, 1.0], [0.0, 0.0, size, size]], requires_grad=True)
    b = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4)
    result = complete_iou(a, b)
    (gradient,) = torch.autograd.grad(result.sum(), a)
    assert result.isfinite().all() and gradient.isfinite().all()
