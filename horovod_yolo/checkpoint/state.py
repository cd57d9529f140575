"""What a run must remember: the keys of ``last.pt`` and ``best.pt``, in plain tensors and builtins."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from horovod_yolo.checkpoint.migration import FORMAT_VERSION


@dataclass
class Progress:
    """How far a run is. ``epoch`` and ``batch`` name the next global batch to train on."""

    epoch: int = 0
    batch: int = 0
    step: int = 0  # optimizer steps done
    skipped: int = 0  # of them, without effect because a gradient was not finite
    images: int = 0  # trained on, all ranks together
    wall_s: float = 0.0  # of training, without validation
    epoch_losses: dict[str, float] = field(default_factory=dict)  # sums of each term times the images, so far
    epoch_images: int = 0  # trained on in this epoch so far
    closed_step: int = 0  # step of the last validation and report, which may still be due after a step
    last_losses: dict[str, float] = field(default_factory=dict)  # means of the last epoch


@dataclass
class EarlyStopping:
    """Best epoch so far; counts up to ``patience`` epochs without a better one."""

    best_fitness: float = -math.inf
    best_epoch: int = 0
    stopped: bool = False

    def update(self, epoch: int, fitness: float, patience: int) -> bool:
        """Take in an epoch's result. True where it is the best so far."""
        best = fitness > self.best_fitness
        if best:
            self.best_fitness, self.best_epoch = fitness, epoch
        self.stopped = patience > 0 and epoch - self.best_epoch >= patience
        return best


def training_state(
    *,
    model: dict[str, Any],
    ema: dict[str, Any],
    optimizer: dict[str, Any],
    scaler: dict[str, Any],
    progress: Progress,
    early_stopping: EarlyStopping,
    metrics: dict[str, Any],
    config: dict[str, Any],
    model_name: str,
    variant: dict[str, int],
    names: tuple[str, ...],
) -> dict[str, Any]:
    """The content of ``last.pt``: everything a resumed run needs to go on bit for bit."""
    return {
        "format_version": FORMAT_VERSION,
        "model_name": model_name,
        "variant": variant,
        "model": model,
        "ema": ema,
        "optimizer": optimizer,
        "scaler": scaler,
        # rates follow from the batch number alone; kept for readers of the file
        "schedule": {"last_step": progress.step, "lr": [g["lr"] for g in optimizer["param_groups"]]},
        "sampler": {"epoch": progress.epoch, "batch": progress.batch},
        "rng": {"torch": torch.get_rng_state()},
        "early_stopping": asdict(early_stopping),
        "progress": asdict(progress),
        "step": progress.step,
        "epoch": progress.epoch,
        "metrics": metrics,
        "config": config,
        "names": list(names),
    }


def inference_state(training: dict[str, Any]) -> dict[str, Any]:
    """The content of ``best.pt``: the averaged weights and what is needed to use them."""
    kept = (
        *("format_version", "model_name", "variant", "ema", "metrics", "config", "names", "epoch", "step"),
        *("license", "names_known"),  # of weights that others published, where the run began with them
    )
    return {key: training[key] for key in kept if key in training}


def copied(value: Any) -> Any:
    """A deep copy of nested builtins with all tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value
