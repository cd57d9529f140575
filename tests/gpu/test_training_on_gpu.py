"""Training on a GPU. These tests skip where there is none; run them with `make test` on a GPU machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import ranks
from tests.helpers.runs import largest_loss_difference, steps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="LOUD SKIP: no GPU here")
FLAGS = "--cfg yolov5n --img 128 --batch 14 --epochs 2 --workers 0 --noplots --noval"


def train(data: Path, folder: Path, name: str, *flags: str, world_size: int = 1) -> Path:
    job = ranks.run(
        ["train.py", "--data", data, "--project", folder, "--name", name, *FLAGS.split(), *flags],
        world_size,
        "plain" if world_size == 1 else "gloo",
    )
    assert job.code == 0, job.output
    return folder / name


def test_float32_losses_are_those_of_the_cpu(digits: Path, tmp_path: Path) -> None:
    gpu = train(digits, tmp_path, "gpu", "--precision", "fp32", "--max-steps", "2")
    cpu = train(digits, tmp_path, "cpu", "--device", "cpu", "--max-steps", "2")
    assert largest_loss_difference(gpu, cpu) < 1e-3  # TF32 and other kernels round differently


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_trains(digits: Path, tmp_path: Path, precision: str) -> None:
    run = train(digits, tmp_path, precision, "--precision", precision)
    losses = [row["box_loss"] for row in steps(run)]
    assert losses and all(0 < loss < 1 for loss in losses)


def test_one_rank_a_gpu(digits: Path, tmp_path: Path) -> None:
    world_size = torch.cuda.device_count()
    if world_size < 2:
        pytest.skip("LOUD SKIP: one GPU, NCCL between GPUs not tested")
    flags = ("--sync-bn", "--compression", "none", "--precision", "fp32", "--max-steps", "2")
    many = train(digits, tmp_path, "many", *flags, world_size=world_size)
    one = train(digits, tmp_path, "one", *flags)
    assert largest_loss_difference(many, one) < 1e-3
