"""Several ranks: on one GPU where Horovod exchanges over the CPU, on a GPU each where it has NCCL."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.communicator import Communicator
from tests.helpers import ranks
from tests.helpers.runs import largest_loss_difference
from tests.helpers.short_runs import settings
from tests.helpers.world import run_world

FLAGS = (
    "--cfg yolov5n --img 64 --batch 14 --epochs 2 --workers 0 --noplots --noval --sync-bn --precision fp32"
)


def has_nccl() -> bool:
    if importlib.util.find_spec("horovod") is None:
        pytest.skip("LOUD SKIP: Horovod is not installed; ranks on GPUs are not tested")
    import horovod.torch as hvd

    return bool(hvd.nccl_built())


def visible() -> dict[str, str]:
    """Ranks of tests see no GPU unless they are told."""
    everything = ",".join(map(str, range(torch.cuda.device_count())))
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", everything)}


def train(data: Path, folder: Path, world_size: int) -> Path:
    arguments = ["train.py", "--data", data, "--project", folder, "--name", "run", *FLAGS.split()]
    job = ranks.run(arguments, world_size, "plain" if world_size == 1 else "gloo", **visible())
    assert job.code == 0, job.output
    return folder / "run"


def test_two_ranks_share_a_gpu_over_gloo(digits: Path, tmp_path: Path) -> None:
    if has_nccl():
        pytest.skip("LOUD SKIP: this Horovod has NCCL, which takes no two ranks on one GPU")
    many = train(digits, tmp_path / "many", torch.cuda.device_count() + 1)
    assert largest_loss_difference(many, train(digits, tmp_path / "one", 1)) < 1e-3


def test_two_ranks_of_one_process_share_a_gpu(digits: Path) -> None:
    """Without Horovod: threads that sum through the CPU, as ranks over Gloo do."""
    config = settings(digits, "0", precision="fp64", sync_bn=True, noval=True)

    def two_steps(comm: Communicator) -> list[float]:
        data = build_data(load_data_yaml(digits), config, comm)
        trainer = build_trainer(config, data, comm, [], None)
        trainer.train_epoch()
        assert next(trainer.stepper.model.parameters()).device == torch.device("cuda", 0)
        return list(trainer.progress.last_losses.values())

    (alone,) = run_world(1, two_steps)
    for losses in run_world(2, two_steps):
        assert losses == pytest.approx(alone, rel=1e-9)


def test_one_rank_a_gpu(digits: Path, tmp_path: Path) -> None:
    if not has_nccl() or torch.cuda.device_count() < 2:
        pytest.skip("LOUD SKIP: NCCL between GPUs is not tested")
    many = train(digits, tmp_path / "many", torch.cuda.device_count())
    assert largest_loss_difference(many, train(digits, tmp_path / "one", 1)) < 1e-3


def test_nccl_refuses_to_share(digits: Path, tmp_path: Path) -> None:
    if not has_nccl():
        pytest.skip("LOUD SKIP: this Horovod has no NCCL")
    arguments = ["train.py", "--data", digits, "--project", tmp_path, *FLAGS.split()]
    job = ranks.run(arguments, torch.cuda.device_count() + 1, "gloo", **visible())
    assert "would share a GPU" in job.output, job.output
    assert "exit with status code 2" in job.output  # horovodrun's own is 1, whatever theirs
