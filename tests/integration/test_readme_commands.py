"""The README's training commands on real images of somebody else, under each launcher."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.helpers import ranks

COMMAND = "--cfg yolov5n --img 320 --batch 16 --epochs 2"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("launcher", "world_size"), [("plain", 1), ("gloo", 2), ("mpi", 2), ("mpirun", 2)])
def test_two_epochs_of_blood_cells(shared_data: Path, tmp_path: Path, launcher: str, world_size: int) -> None:
    words = [
        "train.py",
        "--data",
        shared_data / "bccd" / "data.yaml",
        *COMMAND.split(),
        "--project",
        tmp_path,
    ]
    job = ranks.run(words, world_size, launcher, timeout=900)
    assert job.code == 0, job.output
    results = ranks.results(tmp_path / "exp")
    assert results["world_size"] == world_size
    train, metrics = results["train"], results["metrics"]
    assert isinstance(train, dict) and isinstance(metrics, dict)
    assert all(math.isfinite(value) and value > 0 for value in train.values())
    assert all(math.isfinite(metrics[name]) for name in ("precision", "recall", "mAP50", "mAP50-95"))
