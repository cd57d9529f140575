"""Validation and prediction on a GPU find what a CPU finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from horovod_yolo.api import YOLO
from horovod_yolo.assembly.device import arithmetic, choose_precision
from horovod_yolo.assembly.model import trained_model
from horovod_yolo.assembly.validate import ValOptions, validate
from horovod_yolo.data.read import read_image
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.prediction.predict import predict_images

COMM = LocalCommunicator()


def test_scores_are_those_of_a_cpu(weights: Path) -> None:
    found = {}
    for device, precision in (("cpu", "fp32"), ("0", "fp32"), ("0", "fp16"), ("0", "bf16")):
        options = ValOptions(weights=str(weights), device=device, workers=2, precision=precision)
        found[device, precision] = validate(options, COMM)[0].summary
        print(f"\n{device} {precision}: mAP50-95 {found[device, precision].map50_95:.5f}", end="")
    expected = found["cpu", "fp32"]
    assert expected.map50_95 > 0.02, "weights that find nothing would prove nothing"
    for (device, precision), summary in found.items():
        tolerance = 1e-3 if precision == "fp32" else 2e-2
        assert summary.map50_95 == pytest.approx(expected.map50_95, abs=tolerance), (device, precision)
        assert summary.map50 == pytest.approx(expected.map50, abs=tolerance), (device, precision)


def test_boxes_are_those_of_a_cpu(many_digits: Path, weights: Path) -> None:
    images = [read_image(path) for path in sorted((many_digits.parent / "images" / "train").iterdir())[:8]]
    found = {}
    for device in ("cpu", "cuda"):
        model = trained_model(weights)[0].to(device)
        with arithmetic("fp32"):
            precision = choose_precision("fp32", torch.device(device))
            found[device] = predict_images(model, images, 160, precision, conf_threshold=0.02)
    assert sum(len(d.scores) for d in found["cpu"]) > 8
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        np.testing.assert_array_equal(ours.classes.cpu().numpy(), theirs.classes.numpy())
        np.testing.assert_allclose(ours.scores.cpu().numpy(), theirs.scores.numpy(), atol=1e-4)
        np.testing.assert_allclose(ours.boxes_xyxy.cpu().numpy(), theirs.boxes_xyxy.numpy(), atol=0.1)


def test_the_python_api_predicts_on_the_gpu(many_digits: Path, weights: Path) -> None:
    image = sorted((many_digits.parent / "images" / "train").iterdir())[0]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    (found,) = YOLO(weights).predict([image], conf_threshold=0.001)
    assert torch.cuda.max_memory_allocated() > before
    assert len(found.scores) and found.boxes_xyxy.isfinite().all()
