"""Several ranks: on one GPU where Horovod exchanges over the CPU, on a GPU each where it has NCCL."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.helpers import ranks
from tests.helpers.runs import largest_loss_difference

FLAGS = (
    "--cfg yolov5n --img 64 --batch 14 --epochs 2 --workers 0 --noplots --noval --sync-bn --precision fp32"
)


def has_nccl() -> bool:
    if importlib.util.find_spec("horovod") is None:
        pytest.skip("LOUD SKIP: Horovod is not installed; ranks on GPUs are not tested")
    import horovod.torch as hvd

    return bool(hvd.nccl_built())


def train(data: Path, folder: Path, world_size: int) -> Path:
    arguments = ["train.py", "--data", data, "--project", folder, "--name", "run", *FLAGS.split()]
    job = ranks.run(arguments, world_size, "plain" if world_size == 1 else "gloo")
    assert job.code == 0, job.output
    return folder / "run"


def test_two_ranks_share_a_gpu_over_gloo(digits: Path, tmp_path: Path) -> None:
    if has_nccl():
        pytest.skip("LOUD SKIP: this Horovod has NCCL, which takes no two ranks on one GPU")
    many = train(digits, tmp_path / "many", torch.cuda.device_count() + 1)
    assert largest_loss_difference(many, train(digits, tmp_path / "one", 1)) < 1e-3


def test_one_rank_a_gpu(digits: Path, tmp_path: Path) -> None:
    if not has_nccl() or torch.cuda.device_count() < 2:
        pytest.skip("LOUD SKIP: NCCL between GPUs is not tested")
    many = train(digits, tmp_path / "many", torch.cuda.device_count())
    assert largest_loss_difference(many, train(digits, tmp_path / "one", 1)) < 1e-3


def test_nccl_refuses_to_share(digits: Path, tmp_path: Path) -> None:
    if not has_nccl():
        pytest.skip("LOUD SKIP: this Horovod has no NCCL")
    arguments = ["train.py", "--data", digits, "--project", tmp_path, *FLAGS.split()]
    job = ranks.run(arguments, torch.cuda.device_count() + 1, "gloo")
    assert job.code == 2 and "--device cpu" in job.output, job.output
