"""The loop with all its parts trains the very weights of the plain one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.data.cache import ImageReader
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families.anchor_based.recipe import AnchorBasedHyp as Hyp
from tests.helpers.plain_training import train_plainly

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def settings(data: Path, hyp: Hyp, **changes: Any) -> TrainConfig:
    flags = {
        "cfg": "yolov5n",
        "imgsz": 64,
        "workers": 0,
        "device": "cpu",
        "noval": True,
        "noautoanchor": True,
    }
    config = settings_of({"data": str(data), **flags, **changes})
    return TrainConfig(**{**vars(config), "hyp": hyp})


@pytest.mark.parametrize(
    ("hyp", "changes"),
    [
        (Hyp(nbs=24, mixup=0.3, degrees=5.0), {"batch_size": 8, "epochs": 2, "precision": "fp32", "seed": 5}),
        # The last batch of each epoch is short, and so is its last window.
        (
            Hyp(nbs=20, warmup_epochs=0, mosaic=0.5, lr0=0.02),
            {"batch_size": 10, "epochs": 3, "precision": "fp64", "cos_lr": True},
        ),
        (
            Hyp(nbs=16),
            {"batch_size": 14, "epochs": 1, "precision": "fp32", "freeze": [12]},
        ),
        # It is at batch 100 of 112.
        pytest.param(Hyp(nbs=3), {"batch_size": 1, "epochs": 4, "precision": "fp32"}, marks=pytest.mark.slow),
    ],
    ids=["warm-up", "cosine", "frozen", "end of the warm-up"],
)
def test_the_weights_are_those_of_the_plain_loop(digits: Path, hyp: Hyp, changes: dict[str, Any]) -> None:
    comm = LocalCommunicator()
    config = settings(digits, hyp, **changes)
    data = build_data(load_data_yaml(digits), config, comm)
    trainer = build_trainer(config, data, comm, [], None)
    trainer.fit()
    trainer.close()
    load = ImageReader(data.train, largest=(config.imgsz, config.imgsz))
    model, average = train_plainly(data.train, load, config, DTYPES[config.precision])
    for ours, plain in ((trainer.stepper.model, model), (trainer.ema.model, average)):
        for (name, mine), theirs in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
            # What batch norm tracks is weighted by images: in float64 that may change the last bit.
            near = 1e-14 if mine.dtype == torch.float64 else 0.0
            torch.testing.assert_close(mine, theirs, rtol=near, atol=near, msg=name)
