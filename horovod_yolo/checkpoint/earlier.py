"""The kept checkpoints of a run, and which of them is the nearest before a step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.resume import generations
from horovod_yolo.checkpoint.store import CheckpointError
from horovod_yolo.core.errors import UserError

_NUMBER = re.compile(r"epoch(\d+)\.pt", re.ASCII)


@dataclass(frozen=True)
class Kept:
    """A checkpoint and its step, from which a run can go on."""

    path: Path
    step: int


def nearest_before(folder: Path, step: int, epoch: int) -> tuple[dict[str, Any], Kept, list[Kept]]:
    """The newest whole checkpoint before a step, read only.

    Args:
        folder: of the run.
        step: that is to be made again, from 1.
        epoch: of that step, from 0.

    Returns:
        Its state, what it is, and the generations of ``last.pt`` that are of that step or later.

    Raises:
        UserError: none is kept from before that step.
    """
    last = generations(folder / "weights")
    known = [(state, Kept(path, state["step"])) for path in last if (state := read(path))]
    of_epochs = _numbered(folder / "weights")
    known += _first_whole([path for number, path in reversed(of_epochs) if number <= epoch])
    later = [kept for _, kept in known if kept.step >= step]
    before = [(state, kept) for state, kept in known if kept.step < step]
    if before:
        return *max(before, key=lambda pair: pair[1].step), later
    later += [kept for _, kept in _first_whole([path for _, path in of_epochs])]
    if not later:
        raise UserError("no whole checkpoint is kept to go from", where=folder / "weights")
    oldest = min(later, key=lambda kept: kept.step)
    raise UserError(
        f"step {step} is before the oldest checkpoint, {oldest.path.name} of step {oldest.step}",
        where=folder,
        fix=f"replay from step {oldest.step + 1} on; --save-period 1 keeps the checkpoints of all epochs",
    )


def of_epoch(folder: Path, epochs: int) -> Path:
    """Where the checkpoint after so many epochs is, if it was kept."""
    return folder / "weights" / f"epoch{epochs}.pt"


def read(path: Path) -> dict[str, Any] | None:
    """A checkpoint to go on from; None where it is missing, damaged, or holds weights only."""
    try:
        state = store.read(path)
    except CheckpointError:
        return None
    return state if "optimizer" in state else None


def _numbered(weights: Path) -> list[tuple[int, Path]]:
    """The checkpoints kept after epochs, by their numbers."""
    matches = ((_NUMBER.fullmatch(path.name), path) for path in weights.glob("epoch*.pt"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def _first_whole(paths: Sequence[Path]) -> list[tuple[dict[str, Any], Kept]]:
    for path in paths:
        if state := read(path):
            return [(state, Kept(path, state["step"]))]
    return []
