"""Short trainings in the test's own process, for tests of devices and number formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.run import new_run
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.assembly.train import train
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.types import Batch, Targets
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.training.loop import Trainer

ALONE = LocalCommunicator()


def settings(data: Path, device: str, **flags: Any) -> TrainConfig:
    """yolov5n at 64 px, two steps an epoch of the 28 images that `digits` trains on, two epochs."""
    values = {
        "cfg": "yolov5n",
        "imgsz": 64,
        "batch_size": 14,
        "epochs": 2,
        "workers": 0,
        "noautoanchor": True,
        "optimizer": "SGD",  # whose steps grow no rounding error, as AdamW's of tiny gradients do
    }
    return settings_of({"data": str(data), **values, "device": device, **flags})


def trained(data: Path, folder: Path, device: str, **flags: Any) -> Path:
    """A whole run, from settings to results; its folder."""
    place = {"project": str(folder), "name": "run", "noplots": True, "noval": True}
    run = new_run(settings(data, device, **{**place, **flags}), ALONE)
    train(run, ALONE)
    return run.folder


def make_trainer(config: TrainConfig, state: dict[str, Any] | None = None) -> Trainer:
    """A trainer that nobody watches, at its start or where ``state`` was taken."""
    data = build_data(load_data_yaml(Path(config.data)), config, ALONE)
    return build_trainer(config, data, ALONE, [], state)


def random_batch(images: int, size: int, classes: int = 80, boxes: int = 8, seed: int = 0) -> Batch:
    """Random pixels and ``boxes`` random boxes an image; always the same."""
    rng = torch.Generator().manual_seed(seed)
    count = images * boxes
    return Batch(
        torch.randint(256, (images, 3, size, size), generator=rng, dtype=torch.uint8),
        Targets(
            torch.arange(images).repeat_interleave(boxes),
            torch.randint(classes, (count,), generator=rng),
            torch.rand(count, 4, generator=rng) * 0.4 + 0.1,
        ),
        torch.arange(images),
        [],
    )
