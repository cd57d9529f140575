"""Channels-last or not: how far the gradient is from float64's, and what a step costs."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from horovod_yolo.assembly.build import build_stepper
from horovod_yolo.assembly.device import arithmetic
from horovod_yolo.assembly.model import build_criterion
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.core.precision import Precision
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families.zoo import build_model
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.step import Stepper
from tests.helpers.short_runs import random_batch

FORMATS = {"channels last": torch.channels_last, "NCHW": torch.contiguous_format}
GPU = torch.device("cuda", 0)


def make_stepper(precision: Precision) -> Stepper:
    config = settings_of({"data": "none.yaml", "cfg": "yolov5n", "imgsz": 320, "batch_size": 16})
    torch.manual_seed(0)
    model = build_model("yolov5n", 80).to(precision.device, precision.of_weights)
    criterion = build_criterion(model, config)
    return build_stepper(config, model, criterion, LocalCommunicator(), precision, StopRequest())


def gradient(precision: Precision) -> Tensor:
    """The whole gradient of yolov5n at its first step."""
    stepper = make_stepper(precision)
    found: list[Tensor] = []
    # Copies: on a GPU, Nesterov's step adds the momentum to the gradients in place.
    stepper.optimizer.register_step_pre_hook(
        lambda *_: found.extend(
            p.grad.flatten().to(torch.float64, copy=True)
            for p in stepper.model.parameters()
            if p.grad is not None
        )
    )
    stepper.step(iter([random_batch(16, 320)]), [1.0])
    return torch.cat(found)


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return gradient(Precision(device=GPU, dtype=torch.float64))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("dtype", "name", "most"),
    [(torch.float32, "fp32", 1e-3), (torch.float32, "tf32", 0.5), (torch.bfloat16, "bf16", 2.0)],
    ids=["fp32", "tf32", "bf16"],
)
def test_gradient_and_time_of_a_memory_format(
    exact: Tensor, memory_format: str, dtype: torch.dtype, name: str, most: float
) -> None:
    precision = Precision(device=GPU, dtype=dtype)
    precision = replace(precision, memory_format=FORMATS[memory_format])
    with arithmetic(name):
        error = float((gradient(precision) - exact).norm() / exact.norm())
        seconds = seconds_of_a_step(precision)
    print(f"\n{name} {memory_format}: gradient off by {error:.2%}, a step takes {seconds * 1e3:.1f} ms")
    assert error < most


def seconds_of_a_step(precision: Precision, warm: int = 5, counted: int = 10) -> float:
    stepper, batch = make_stepper(precision), random_batch(16, 320)
    batch = batch.to(precision.device, non_blocking=False)
    for number in range(warm + counted):
        if number == warm:
            torch.cuda.synchronize()
            begun = time.perf_counter()
        stepper.step(iter([batch]), [1.0])
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / counted
