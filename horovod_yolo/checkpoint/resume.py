"""Which checkpoint to go on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.store import CheckpointError, UnreadableError
from horovod_yolo.core.errors import UserError

KEEP = 3  # generations of last.pt


def generations(weights: Path) -> list[Path]:
    """Where the last checkpoints of a run folder's ``weights`` may be, newest first."""
    last = weights / "last.pt"
    return [last, *(store.older(last, k) for k in range(1, KEEP))]


def written_ns(folder: Path) -> int:
    """When the last checkpoint in a run folder was written, in nanoseconds; 0 where there is none."""
    try:
        return generations(folder / "weights")[0].stat().st_mtime_ns
    except OSError:
        return 0


def set_damaged_aside(weights: Path) -> None:
    """Rename what is damaged and newer than the newest whole checkpoint to ``last.pt.damaged``.

    The next rotations would let it push the whole ones out.

    Raises:
        OSError: the folder is read-only or gone.
    """
    for path in generations(weights):
        try:
            store.verified(path)
        except UnreadableError:
            continue
        except CheckpointError:
            path.replace(path.with_name(f"{path.name}.damaged"))
        else:
            return


def newest_run(project: Path) -> Path:
    """The run folder under ``project`` whose checkpoint was written last.

    Raises:
        UserError: there is none.
    """
    found = [path for path in project.glob("*/weights/last*.pt") if path.is_file()]
    if not found:
        raise UserError("no run to resume", where=project, fix="name one: --resume runs/train/exp3")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent.parent


class NothingWholeError(UserError):
    """Each checkpoint is missing, damaged or not ours, and none only could not be read just now."""


def load(target: Path) -> tuple[dict[str, Any], Path, list[str]]:
    """The newest whole checkpoint of a run folder, or the one file named.

    Returns:
        Its state, its path, and what was passed over and why.

    Raises:
        NothingWholeError: nothing usable is there.
        UserError: what is there cannot be read.
    """
    candidates = generations(target / "weights") if target.is_dir() else [target]
    passed_over: list[str] = []
    unreadable = False
    for path in candidates:
        try:
            state = store.read(path)
        except CheckpointError as error:
            unreadable |= isinstance(error, UnreadableError) and os.path.lexists(path)
            if path.exists() or path == candidates[0]:
                passed_over.append(str(error))
            continue
        if "optimizer" not in state:
            passed_over.append(f"{path}: holds weights only, no training state")
            continue
        return state, path, passed_over
    what = "no checkpoint to resume from: " + "; ".join(passed_over)
    fix = "name another run or start a new one without --resume"
    raise UserError(what, fix=f"mend the disk, or {fix}") if unreadable else NothingWholeError(what, fix=fix)
