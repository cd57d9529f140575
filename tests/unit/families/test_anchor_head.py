"""Decoding by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from horovod_yolo.core.types import Decoded
from horovod_yolo.families.anchor_based.head import AnchorHead
from horovod_yolo.families.zoo import build_model
from horovod_yolo.models.suppression import Thresholds


def decode(raw: list[Tensor], anchors_px: list[list[list[float]]], strides: tuple[int, ...]) -> Decoded:
    head = AnchorHead([1] * len(raw), raw[0].shape[-1] - 5, anchors_px, strides, layer=0)
    return head.decode(raw)


def test_a_zero_prediction_is_the_middle_of_its_cell_and_its_anchor() -> None:
    anchors = [[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0]]]
    boxes, scores = decode([torch.zeros(1, 2, 2, 3, 7), torch.zeros(1, 2, 1, 2, 7)], anchors, (8, 16))
    assert boxes.shape == (1, 2 * 6 + 2 * 2, 4)
    assert scores.shape == (1, 2 * 6 + 2 * 2, 2)
    assert scores.unique().tolist() == [0.25]
    # Level 0, anchor 1, row 1, column 2.
    assert boxes[0, 6 + 3 + 2].tolist() == [2.5 * 8 - 8, 1.5 * 8 - 15, 2.5 * 8 + 8, 1.5 * 8 + 15]
    # Level 1, anchor 0, row 0, column 1.
    assert boxes[0, 12 + 1].tolist() == [1.5 * 16 - 15, 0.5 * 16 - 30.5, 1.5 * 16 + 15, 0.5 * 16 + 30.5]


def test_decode_by_hand() -> None:
    raw = torch.tensor([1.0, -2.0, 0.5, -0.5, 3.0, -1.0, 2.0], dtype=torch.float64).view(1, 1, 1, 1, 7)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    x, y = (2 * sigmoid(1) - 0.5) * 8, (2 * sigmoid(-2) - 0.5) * 8
    w, h = (2 * sigmoid(0.5)) ** 2 * 20, (2 * sigmoid(-0.5)) ** 2 * 40
    boxes, scores = decode([raw], [[[20.0, 40.0]]], (8,))
    expected = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    assert boxes[0, 0].tolist() == pytest.approx(expected, rel=1e-12)
    assert scores[0, 0].tolist() == pytest.approx(
        [sigmoid(3) * sigmoid(-1), sigmoid(3) * sigmoid(2)], rel=1e-12
    )


@given(st.lists(st.floats(-60, 60, width=32), min_size=4, max_size=4))
def test_boxes_stay_within_reach_of_cell_and_anchor(values: list[float]) -> None:
    raw = torch.zeros(1, 1, 2, 2, 6)
    raw[0, 0, 1, 0, :4] = torch.tensor(values)
    left, top, right, bottom = decode([raw], [[[10.0, 20.0]]], (16,)).boxes_xyxy[0, 2].tolist()
    tiny = 1e-4  # the corners are rounded
    assert -8 - tiny <= (left + right) / 2 <= 24 + tiny and 8 - tiny <= (top + bottom) / 2 <= 40 + tiny
    assert -tiny <= right - left <= 4 * 10 + tiny and -tiny <= bottom - top <= 4 * 20 + tiny


def test_half_precision_is_decoded_in_float32() -> None:
    raw = torch.randn(1, 1, 40, 40, 6).bfloat16()
    anchors = [[[10.0, 13.0]]]
    found, expected = decode([raw], anchors, (8,)), decode([raw.float()], anchors, (8,))
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)
    assert torch.equal(found.scores, expected.scores)


def test_a_model_decodes_an_empty_batch() -> None:
    model = build_model("yolov5n", 2).eval()
    predictions = model(torch.zeros(0, 3, 64, 64))
    boxes, scores = model.head.decode(predictions)
    assert boxes.shape == (0, 3 * (64 + 16 + 4), 4)
    assert scores.shape == (0, 3 * (64 + 16 + 4), 2)
    assert model.detect(predictions, Thresholds()) == []
