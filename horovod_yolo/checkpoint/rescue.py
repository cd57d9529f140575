"""How an elastic run's last commit, which is in memory only, reaches the disk when its ranks are too few."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from horovod_yolo.checkpoint import resume, store
from horovod_yolo.checkpoint.store import CheckpointError
from horovod_yolo.io.private import own_folder

log = logging.getLogger(__name__)


def save_once(folder: Path, state: dict[str, Any]) -> None:
    """Write a commit as ``last.pt`` unless another survivor does. A disk that refuses it is logged.

    All survivors call this, and none knows of the others: the first to make a file of the step's name
    writes.
    """
    weights = folder / "weights"
    marker = weights / f".saving-{state['epoch']}-{state['step']}"
    try:
        own_folder(weights)
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
