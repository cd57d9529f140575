"""What tests ask of run folders."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from horovod_yolo.report.finished import read_rows

OF_TIME = ("images_per_s", "data_wait_s", "comm_wait_s")  # columns of results.csv that differ in every run


def steps(run: Path) -> list[dict[str, float]]:
    """The lines of ``steps.csv``; a digest is a whole number."""
    with (run / "steps.csv").open(newline="") as file:
        return [
            {key: int(value, 16) if key == "digest" else float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def checkpoint(run: Path) -> dict[str, Any]:
    """``last.pt``."""
    loaded: dict[str, Any] = torch.load(run / "weights" / "last.pt", weights_only=True)
    return loaded


def sha256(run: Path) -> str:
    """A digest of all that may depend neither on ranks nor on what happened to a run that is over."""
    state = checkpoint(run)
    parts = (
        "model",
        "ema",
        "optimizer",
        "scaler",
        "exchange",
        "metrics",
        "early_stopping",
        "step",
        "sampler",
    )
    digest = hashlib.sha256()
    _add({part: state[part] for part in parts}, digest)
    digest.update((run / "steps.csv").read_bytes())  # losses, rates and norms, written in full
    for row in read_rows(run / "results.csv"):
        _add({name: value for name, value in row.items() if name not in OF_TIME}, digest)
    return digest.hexdigest()


def _add(value: Any, digest: hashlib._Hash) -> None:
    """Nested builtins and tensors, with their types and shapes."""
    if isinstance(value, Tensor):
        digest.update(repr((value.dtype, tuple(value.shape))).encode())
        digest.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key, entry in value.items():
            digest.update(repr(key).encode())
            _add(entry, digest)
    elif isinstance(value, (list, tuple)):
        digest.update(repr(len(value)).encode())
        for entry in value:
            _add(entry, digest)
    else:
        digest.update(repr(value).encode())


def flat(weights: dict[str, Tensor]) -> Tensor:
    """All floating-point tensors of a state as one vector."""
    return torch.cat([tensor.double().flatten() for tensor in weights.values() if tensor.is_floating_point()])


def largest_loss_difference(run: Path, reference: Path) -> float:
    """The largest relative difference of any loss at any step; a term without objects is 0."""
    pairs = zip(steps(run), steps(reference), strict=True)
    return max(
        abs(value - b[name]) / (abs(b[name]) or 1.0)
        for a, b in pairs
        for name, value in a.items()
        if name.endswith("_loss")
    )


def weight_difference(run: Path, reference: Path) -> float:
    """Norm of the difference of all weights, relative to the norm of the reference's."""
    a, b = (flat(checkpoint(folder)["model"]) for folder in (run, reference))
    return float((a - b).norm() / b.norm())


def same_bits(a: Any, b: Any) -> bool:
    """Whether two nested states are equal in every tensor and every builtin."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_bits, a, b))
    return bool(a == b)
