"""Training on one GPU: the numbers of a CPU, in every number format, and the same bits again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from horovod_yolo.assembly.device import arithmetic
from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.state import copied
from tests.helpers.runs import largest_loss_difference, same_bits, steps
from tests.helpers.short_runs import make_trainer, settings, trained


@pytest.mark.parametrize(
    ("cfg", "precision", "tolerance"),
    [
        ("yolov5n", "fp64", 1e-9),
        ("yolov5n", "fp32", 1e-3),
        ("yolov8n", "fp64", 1e-9),
        ("yolo26n", "fp64", 1e-9),
    ],
)
def test_losses_are_those_of_a_cpu_in_float64(
    digits: Path, tmp_path: Path, cfg: str, precision: str, tolerance: float
) -> None:
    gpu = trained(digits, tmp_path / "gpu", "0", cfg=cfg, precision=precision)
    cpu = trained(digits, tmp_path / "cpu", "cpu", cfg=cfg, precision="fp64")
    difference = largest_loss_difference(gpu, cpu)
    print(f"\n{cfg} {precision}: losses of {len(steps(gpu))} steps differ by {difference:.1e} of themselves")
    assert difference < tolerance


@pytest.mark.parametrize("precision", ["auto", "fp16", "bf16", "tf32"])
def test_narrow_formats_train(digits: Path, tmp_path: Path, precision: str) -> None:
    reference = trained(digits, tmp_path / "fp32", "0", precision="fp32")
    narrow = trained(digits, tmp_path / precision, "0", precision=precision)
    difference = largest_loss_difference(narrow, reference)
    print(f"\n{precision}: losses differ from float32's by {difference:.1e} of themselves")
    assert 0 < difference < 0.2


@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0.0, 2e-6), ("tf32", 2e-5, 2e-3)])
def test_float32_is_float32_unless_tf32_is_asked_for(precision: str, least: float, most: float) -> None:
    if precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("LOUD SKIP: this GPU has no TF32")
    rng = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, 64, 40, 40, generator=rng), torch.randn(64, 64, 3, 3, generator=rng)
    exact = F.conv2d(x.double(), w.double())
    with arithmetic(precision):
        found = F.conv2d(x.cuda(), w.cuda()).cpu().double()
    error = float((found - exact).norm() / exact.norm())
    print(f"\n{precision}: a convolution is off by {error:.1e}")
    assert least <= error < most


def whole_and_resumed(digits: Path, folder: Path, **flags: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """States after two epochs: of a run without an interruption, and of one that went on from a file."""
    config = settings(digits, "0", noval=True, **flags)
    file = folder / "last.pt"
    with arithmetic(config.precision, deterministic=config.deterministic):
        whole = make_trainer(config)
        whole.train_epoch()
        store.write(file, store.serialise(whole.state()))
        whole.train_epoch()
        resumed = make_trainer(config, store.read(file))
        resumed.train_epoch()
    return copied(whole.state()), copied(resumed.state())


@pytest.mark.parametrize(
    ("cfg", "precision"),
    [("yolov5n", "fp32"), ("yolov5n", "fp16"), ("yolov5n", "bf16"), ("yolo11n", "fp16"), ("yolo26n", "fp32")],
)
def test_a_deterministic_run_resumes_bit_for_bit(
    digits: Path, tmp_path: Path, cfg: str, precision: str
) -> None:
    whole, resumed = whole_and_resumed(digits, tmp_path, cfg=cfg, precision=precision, deterministic=True)
    for key in ("model", "ema", "optimizer", "scaler", "metrics", "step", "epoch"):
        assert same_bits(whole[key], resumed[key]), key


def test_what_is_kept_of_an_elastic_commit_is_on_the_cpu_and_enough(digits: Path) -> None:
    config = settings(digits, "0", noval=True, precision="fp16", deterministic=True)
    with arithmetic(config.precision, deterministic=True):
        trainer = make_trainer(config)
        trainer.train_epoch()
        kept = copied(trainer.state())
        at_commit = copied(kept)
        trainer.train_epoch()  # goes on in the same tensors
        assert same_bits(kept, at_commit)
        assert {tensor.device.type for tensor in tensors(kept)} == {"cpu"}
        again = make_trainer(config, kept)
        again.train_epoch()
    assert same_bits(copied(again.state())["model"], copied(trainer.state())["model"])


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]
