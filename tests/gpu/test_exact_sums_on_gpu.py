"""Slices with exact sums on one GPU: the same bits on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.device import arithmetic
from horovod_yolo.checkpoint.state import copied
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.communicator import Communicator
from tests.helpers import ranks
from tests.helpers.runs import same_bits, sha256
from tests.helpers.short_runs import settings
from tests.helpers.world import run_world

from .test_ranks_on_gpu import visible

FLAGS = (
    "--cfg yolov5n --img 64 --batch 14 --epochs 2 --workers 0 --noplots --slices 2 --sums exact "
    "--deterministic --precision fp32 --engine torch"
)


def train(data: Path, folder: Path, world_size: int, device: str) -> Path:
    """A run of as many processes, which all compute on this device, over torch's Gloo."""
    arguments = ["train.py", "--data", data, "--project", folder, "--name", "run", *FLAGS.split()]
    variables = {**visible(), "HOROVOD_YOLO_NCCL": "0"}
    job = ranks.run([*arguments, "--device", device], world_size, "torchrun", **variables)
    assert job.code == 0, job.output
    results = json.loads((folder / "run" / "results.json").read_text())
    assert (results["world_size"], results["slices"], results["bitwise"]) == (world_size, 2, "yes")
    return folder / "run"


def require_same_bits(data: Path, folder: Path, device: str) -> None:
    """Of weights, averages, optimizer, metrics and tables."""
    found = [sha256(train(data, folder / str(size), size, device)) for size in (1, 2)]
    assert found[0] == found[1]


def test_one_process_and_two_over_gloo_end_with_the_same_bits(digits: Path, tmp_path: Path) -> None:
    require_same_bits(digits, tmp_path, "0")


def states(digits: Path, device: str, cfg: str, precision: str) -> list[dict[str, object]]:
    """After an epoch of one rank and of two, which are threads of this process."""
    flags = {"cfg": cfg, "precision": precision, "slices": 2, "sums": "exact", "deterministic": True}
    config = settings(digits, device, noval=True, epochs=1, **flags)

    def epoch(comm: Communicator) -> dict[str, object]:
        data = build_data(load_data_yaml(digits), config, comm)
        trainer = build_trainer(config, data, comm, [], None)
        trainer.train_epoch()
        return copied(trainer.state())

    with arithmetic(precision, deterministic=True):
        return [*run_world(1, epoch), *run_world(2, epoch)]


@pytest.mark.parametrize(
    ("cfg", "precision"), [("yolov5n", "fp32"), ("yolov5n", "fp16"), ("yolov8n", "fp32"), ("yolo26n", "bf16")]
)
def test_in_every_number_format(digits: Path, cfg: str, precision: str) -> None:
    alone, *two = states(digits, "0", cfg, precision)
    for state in two:
        for part in ("model", "ema", "optimizer", "scaler", "exchange", "step"):
            assert same_bits(alone[part], state[part]), part
