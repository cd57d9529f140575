"""Weights and images that are filled by a rule, so that numbers of other programs can be compared with."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from horovod_yolo.models.detector import Detector, published_names

REFERENCES = Path(__file__).resolve().parents[2] / "../shared/models"
needs_references = pytest.mark.skipif(
    not REFERENCES.is_dir(), reason=f"LOUD SKIP: the reference numbers of the models are not at {REFERENCES}"
)


def filled(key: str, shape: tuple[int, ...], gain: float) -> Tensor:
    """The value of a published key."""
    g = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("dfl.conv.weight"):
        return torch.arange(float(shape[1])).view(shape)
    if key.endswith(("bn.weight", "bn.running_var")):
        value = g.uniform(0.5, 1.5, shape)
    elif key.endswith(("bn.bias", "bn.running_mean")):
        value = g.normal(0, 0.1, shape)
    elif key.endswith(".bias"):
        value = g.normal(0, 0.1, shape) + (2 if "cv2." in key else -3)
    else:
        value = g.normal(0, 1, shape) * gain / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32))


def fill(model: Detector, gain: float) -> None:
    """Give a model the weights of the rule."""
    state = model.state_dict()
    values = [
        filled(key, tuple(old.shape), gain)
        for key, old in zip(published_names(model), state.values(), strict=True)
    ]
    model.load_state_dict(dict(zip(state, values, strict=True)))
