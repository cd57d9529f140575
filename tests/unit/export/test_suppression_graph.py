"""Suppression in a graph is that of the model: the same detections in the same order."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor

from horovod_yolo.core.types import Decoded, Detections
from horovod_yolo.export.suppression_graph import suppression_model
from horovod_yolo.models.suppression import Thresholds, best_of_each_place, non_max_suppression

CLASSES = 4


def crowd(images: int, places: int, seed: int) -> Decoded:
    """Many boxes that overlap, some scores alike, most of them low."""
    rng = torch.Generator().manual_seed(seed)
    middle = torch.randint(0, 60, (images, places, 2), generator=rng).float()
    half = torch.randint(4, 16, (images, places, 2), generator=rng).float()
    scores = torch.rand((images, places, CLASSES), generator=rng) ** 3
    scores = (scores * 50).round() / 50  # ties
    return Decoded(torch.cat((middle - half, middle + half), dim=2), scores)


def computed(model: onnx.ModelProto, decoded: Decoded) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {"boxes": decoded.boxes_xyxy.numpy(), "scores": decoded.scores.numpy()}
    (rows,) = session.run(None, inputs)
    return torch.from_numpy(rows)


def as_rows(found: Detections) -> Tensor:
    return torch.cat((found.boxes_xyxy, found.scores[:, None], found.classes[:, None].float()), dim=1)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("opset", [18, 20])
def test_it_is_that_of_the_model(once: bool, multi_label: bool, opset: int) -> None:
    thresholds = Thresholds(confidence=0.3, iou=0.4, most=12, multi_label=multi_label)
    model = suppression_model(thresholds, CLASSES, opset, 10, once=once)
    onnx.checker.check_model(model, full_check=True)
    for images, places, seed in ((3, 200, 0), (1, 40, 1), (2, 5, 2)):
        decoded = crowd(images, places, seed)
        rows = computed(model, decoded)
        expected = (best_of_each_place if once else non_max_suppression)(decoded, thresholds)
        assert rows.shape[0] == images and rows.shape[2] == 6
        assert any(len(one) == 12 for one in expected) or places < 12
        for found, one in zip(rows, expected, strict=True):
            assert torch.equal(found[: len(one)], as_rows(one))
            assert not found[len(one) :].any(), "rows behind the last are zero"


@pytest.mark.parametrize("once", [False, True])
def test_nothing_is_found_in_nothing(once: bool) -> None:
    model = suppression_model(Thresholds(confidence=0.3, most=5), CLASSES, 18, 10, once=once)
    decoded = crowd(2, 30, 3)
    rows = computed(model, Decoded(decoded.boxes_xyxy, decoded.scores * 0))
    assert rows.shape == (2, 5, 6) and not rows.any()
