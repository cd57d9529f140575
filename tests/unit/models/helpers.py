"""Models without memory, for what depends on names and shapes alone."""

from __future__ import annotations

import functools

import torch

from horovod_yolo.families.zoo import build_model
from horovod_yolo.models.detector import Detector


@functools.cache
def on_meta(name: str, classes: int = 80) -> Detector:
    """Shared between tests: not to be changed."""
    with torch.device("meta"):
        return build_model(name, classes)
