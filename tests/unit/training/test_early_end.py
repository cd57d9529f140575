"""All ranks end early in the same epoch, whatever each of them measured."""

from __future__ import annotations

import math
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.training import loop
from tests.helpers.world import WorldCommunicator, run_world


def test_ranks_whose_fitness_differs_by_a_bit_end_together(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on unlike machines: for rank 1 the second epoch is better than the first by the last bit."""
    measured = {"rank 0": [0.5, 0.5, 0.6], "rank 1": [0.5, math.nextafter(0.5, 1), 0.6]}
    metrics_of = loop.metrics_of

    def measure(*given: Any) -> dict[str, Any]:
        return {**metrics_of(*given), "fitness": measured[current_thread().name].pop(0)}

    monkeypatch.setattr(loop, "metrics_of", measure)
    config = settings_of(
        {"data": str(digits), "cfg": "yolov5n", "imgsz": 64, "batch_size": 28, "epochs": 3, "patience": 1,
         "workers": 0, "device": "cpu", "cache_dir": str(tmp_path)}
    )  # fmt: skip

    def train(comm: WorldCommunicator) -> tuple[int, int, float]:
        trainer = build_trainer(config, build_data(load_data_yaml(digits), config, comm), comm, [], None)
        trainer.fit()
        trainer.close()
        stopping = trainer.early_stopping
        return trainer.progress.epoch, stopping.best_epoch, stopping.best_fitness

    assert run_world(2, train) == [(2, 0, 0.5)] * 2
