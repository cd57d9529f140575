"""``last.pt`` and ``best.pt``, written beside training by a thread."""

from __future__ import annotations

import logging
import math
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.resume import KEEP, set_damaged_aside
from horovod_yolo.checkpoint.state import copied, inference_state
from horovod_yolo.core.errors import UnwrittenError
from horovod_yolo.io.private import own_folder

log = logging.getLogger(__name__)
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # before a refused write is tried again
WARNING_EVERY_S = 5.0  # while checkpoints go on failing


class Checkpointer:
    """The callback of a run that saves each commit; training goes on as soon as the tensors are copied.

    A write that the disk refuses is tried again after growing pauses, until it succeeds or the next commit
    comes, which takes its place. Nothing waits for the pauses but the end of the run.

    Args:
        weights: the folder.
        save_period: epochs between checkpoints that are kept; -1 for none.
        least_seconds: between commits within an epoch; those that come sooner are left out.
    """

    def __init__(self, weights: Path, save_period: int, least_seconds: float = 0.0) -> None:
        self._weights = weights
        self._save_period = save_period
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._least_seconds = least_seconds
        self._taken_at = time.monotonic()
        self._next_waits = threading.Event()
        self._owed: dict[str, bytes] = {}  # files that are not on the disk yet; last.pt is the last of them
        self.refused = ""  # why not
        self.written_at: float | None = None  # last.pt, seconds since 1970
        self._failed = 0  # commits in a row
        self._warned_at = -math.inf

    def on_start(self, start: object) -> None:
        """Clear away what a killed run was writing, and what is damaged out of the way of the rotation."""
        try:
            for unfinished in self._weights.glob(".*.tmp"):
                unfinished.unlink(missing_ok=True)
            set_damaged_aside(self._weights)
        except OSError as error:
            log.warning("%s cannot be tidied: %s", self._weights, error.strerror or error)

    def on_step(self, report: object) -> None:
        """Nothing: a commit says what to save."""

    def on_shares(self, report: object) -> None:
        """Nothing."""

    def on_plan(self, report: object) -> None:
        """Nothing."""

    def on_epoch(self, report: object) -> None:
        """Nothing."""

    def on_commit(self, state: dict[str, Any], best: bool) -> None:
        """Copy the state and queue it; waits only where the disk is a whole commit behind."""
        within_epoch, now = state["sampler"]["batch"] > 0, time.monotonic()
        if within_epoch and not state.get("stopped") and now - self._taken_at < self._least_seconds:
            return
        self._taken_at = now
        self._next_waits.set()
        self.wait()
        self._next_waits.clear()
        self._pending = self._writer.submit(self._save, copied(state), best)

    def on_end(self, results: dict[str, Any]) -> None:
        """Wait for the last write.

        Raises:
            UnwrittenError: the last checkpoint is not on the disk, or the best one.
        """
        self.wait()
        if self._owed:
            names = " and ".join(self._owed)
            again = "" if self.saved else ", then train the last steps again with --resume"
            raise UnwrittenError(
                f"{self._weights}: the run is over, but its {names} could not be written ({self.refused}); "
                f"what is there is older. Mend the disk{again}"
            )

    def close(self) -> None:
        """End the thread, after one more try where the disk refuses."""
        self._next_waits.set()
        self._writer.shutdown()

    @property
    def saved(self) -> bool:
        """Whether the last commit is on the disk; ask after `wait`."""
        return self._pending is not None and "last.pt" not in self._owed

    @property
    def nothing_owed(self) -> bool:
        """Whether all there was to write is on the disk; ask after `wait`."""
        return not self._owed

    def wait(self) -> None:
        """Until nothing is left to write, or the disk has refused it for good."""
        if self._pending is not None:
            self._pending.result()

    def _save(self, state: dict[str, Any], best: bool) -> None:
        self._owe(state, best)
        self._write_owed()
        if self._owed:
            self._failed += 1
            self._warn()
        for pause_s in PAUSES_S:
            if not self._owed or self._next_waits.wait(pause_s):
                break
            self._write_owed()
        if self._failed and not self._owed:
            log.warning("checkpoints are written again to %s, after %d failed", self._weights, self._failed)
            self._failed, self._warned_at = 0, -math.inf

    def _owe(self, state: dict[str, Any], best: bool) -> None:
        """Take in a commit. A best one that was refused stays until it is on the disk or surpassed."""
        data, end = store.serialise(state), state["sampler"]
        if best:
            self._owed["best.pt"] = store.serialise(inference_state(state))
        if self._save_period > 0 and end["batch"] == 0 and end["epoch"] % self._save_period == 0:
            for name in [name for name in self._owed if name.startswith("epoch")]:
                log.warning("CHECKPOINT LOST: %s, as the disk would not take it", name)
                del self._owed[name]
            self._owed[f"epoch{end['epoch']}.pt"] = data
        # Last, so that a run killed between the two comes back to before its best epoch and finds it again.
        self._owed.pop("last.pt", None)
        self._owed["last.pt"] = data

    def _write_owed(self) -> None:
        """Try each file; one that fails, being larger, need not fail the others."""
        for name, data in list(self._owed.items()):
            try:
                own_folder(self._weights)
                if name == "last.pt":
                    store.write_rotating(self._weights / name, data, KEEP)
                else:
                    store.write(self._weights / name, data)
            except OSError as error:
                self.refused = error.strerror or str(error)
            else:
                del self._owed[name]
                self.written_at = time.time() if name == "last.pt" else self.written_at

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned_at < WARNING_EVERY_S:
            return
        self._warned_at = now
        log.warning(
            "CHECKPOINT NOT WRITTEN to %s: %s (%s; commits failed in a row: %d). Training goes on and it is "
            "tried again; the checkpoints there are whole. Free or mend the disk",
            self._weights,
            self.refused,
            ", ".join(self._owed),
            self._failed,
        )
