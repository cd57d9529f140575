"""What a run needs whose ranks come and go; how its last commit reaches the disk when they are too few."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from horovod_yolo.checkpoint import resume, store
from horovod_yolo.checkpoint.store import CheckpointError

if TYPE_CHECKING:
    from horovod_yolo.assembly.data import Data
    from horovod_yolo.training.loop import Trainer

log = logging.getLogger(__name__)
SECONDS_BETWEEN_SAVES = 60.0  # on disk, within an epoch; commits between them are in memory only


@dataclass(frozen=True)
class Elastic:
    """A run's part in a changing world."""

    first_size: int  # ranks when it began: a rank's memory is known to hold the slices of then
    keep: Callable[[dict[str, Any]], None]  # gets each commit, on every rank; may raise to change the world
    digests: (
        tuple[str, str] | None
    )  # of the data that the job was begun with; None: it is still to be scanned
    data: Data | None  # this; None on a rank that has not got it yet
    keep_data: Callable[[Data], None]  # gets it, on every rank, as soon as it has it

    def attach(self, trainer: Trainer) -> None:
        """Make a trainer keep its commits, and split slices that are larger than those of the first world.

        Batch norm's running statistics move as far in a step as without micro-batches.
        """
        trainer.keep = self.keep
        config, ranks = trainer.config, trainer.comm.size
        trainer.stepper.micro_batches = self._micro_batches(config.batch_size, ranks)
        for module in trainer.stepper.model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
                module.momentum = 1 - (1 - module.momentum) ** (1 / trainer.stepper.micro_batches)
        in_validation = self._micro_batches(config.evaluation_batch_size, ranks)
        trainer.evaluator = replace(trainer.evaluator, micro_batches=in_validation)

    def _micro_batches(self, batch: int, ranks: int) -> int:
        return math.ceil(math.ceil(batch / ranks) / math.ceil(batch / self.first_size))


def save_once(folder: Path, state: dict[str, Any]) -> None:
    """Write a commit as ``last.pt`` unless another survivor does. A disk that refuses it is logged.

    All survivors call this, and none knows of the others: the first to make a file of the step's name
    writes.
    """
    weights = folder / "weights"
    marker = weights / f".saving-{state['epoch']}-{state['step']}"
    try:
        weights.mkdir(parents=True, exist_ok=True)
        marker.open("x").close()
    except FileExistsError:
        return
    except OSError as error:
        log.warning("CHECKPOINT NOT WRITTEN to %s: %s", weights, error.strerror)
        return
    _save(weights, state)
    marker.unlink(missing_ok=True)


def save_at_last(folder: Path, state: dict[str, Any]) -> Path | None:
    """Make sure that a commit is on the disk; where, or None if it cannot be."""
    weights = folder / "weights"
    if not _is_saved(weights, state):
        _save(weights, state)
    return weights / "last.pt" if _is_saved(weights, state) else None


def _save(weights: Path, state: dict[str, Any]) -> None:
    if _is_saved(weights, state):
        return
    try:
        store.write_rotating(weights / "last.pt", store.serialise(state), resume.KEEP)
    except OSError as error:
        log.warning("CHECKPOINT NOT WRITTEN to %s: %s", weights, error.strerror)


def _is_saved(weights: Path, state: dict[str, Any]) -> bool:
    try:
        saved = store.read(weights / "last.pt")
    except CheckpointError:
        return False
    return bool((saved["step"], saved["epoch"]) >= (state["step"], state["epoch"]))
