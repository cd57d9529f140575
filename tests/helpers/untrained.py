"""A checkpoint with random weights, which finds something everywhere when asked with low thresholds."""

from __future__ import annotations

from pathlib import Path

import torch

from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.migration import FORMAT_VERSION
from horovod_yolo.config.schema import TrainConfig, to_dict
from horovod_yolo.families import zoo

NAMES = ("cat", "dog", "bird/fish")


def write_untrained(path: Path, model: str = "yolov5n", imgsz: int = 64) -> Path:
    """Write the checkpoint; always the same weights."""
    torch.manual_seed(5)
    weights = zoo.build_model(model, len(NAMES)).state_dict()
    state = {
        "format_version": FORMAT_VERSION,
        "model_name": model,
        "ema": {"weights": weights, "updates": 0},
        "metrics": {},
        "config": to_dict(TrainConfig(data="none.yaml", cfg=model, imgsz=imgsz)),
        "names": list(NAMES),
        "epoch": 0,
        "step": 0,
    }
    store.write(path, store.serialise(state))
    return path
