"""What a logger gets, it gets from the run's own tables, in a thread beside training.

`steps.csv` and `results.csv` are the queue: they lie on the disk, take no memory, and a job that is resumed
finds in them what its predecessor could not send. So no step waits for a logger, and none is lost with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from horovod_yolo.core.text import one_line
from horovod_yolo.telemetry.logger import End, LoggedRun, Logger, Sent
from horovod_yolo.telemetry.redaction import redacted
from horovod_yolo.telemetry.tail import Tail
from horovod_yolo.training.events import (
    Callback,
    EpochReport,
    PlanReport,
    RunStart,
    SharesReport,
    StepReport,
)

log = logging.getLogger(__name__)
SECONDS_BETWEEN = 2.0  # in which new rows gather
LONGEST_PAUSE_S = 30.0  # between tries, where a logger fails again and again
SECONDS_AT_THE_END = 15.0  # for what is left
SECONDS_AT_A_STOP = 5.0  # likewise; a batch system that ends a job gives it about 30
SECONDS_OF_A_CHANGE = 2.0  # likewise, where the run is broken off: other ranks may wait for this one
MOST_POINTS = 100  # that are sent at once
MOST_TIMES = 10_000  # of steps that are remembered; older ones are sent long ago, or late anyway


class Delivery(Callback):
    """Sends the tables of a run to a logger. A logger that fails costs a warning, and what it missed is sent
    when it works again.

    Args:
        logger: where to.
        folder: of the run.
        settings: to be logged, flat.
        uid: of the run, the same for all jobs that work on it.
        ids: how the loggers call the run, by name; goes into its checkpoints. The thread fills in its own.
    """

    def __init__(
        self,
        logger: Logger,
        folder: Path,
        settings: Mapping[str, str | int | float | bool],
        uid: str,
        ids: dict[str, str],
    ) -> None:
        self._logger = logger
        self._folder = folder
        self._settings = settings
        self._uid = uid
        self._ids = ids
        self._times: dict[str, dict[int, float]] = {"step": {}, "epoch": {}}
        self._shares: dict[int, dict[str, float]] = {}
        self._plans: dict[int, dict[str, float]] = {}
        self._tails = [
            Tail(folder / "results.csv", "epoch", "", self._times["epoch"], self._plans),
            Tail(folder / "steps.csv", "step", "step/", self._times["step"], self._shares),
        ]
        self._sent: Sent | None = None  # None: it is not open
        self._arrived = Sent("")  # what is known of it for certain
        self._refused = ""  # why it failed the last time; empty where it did not
        self._pause_s = SECONDS_BETWEEN
        self._over = threading.Event()
        self._end: End = "broken off"
        self._results: Mapping[str, Any] = {}
        self._finished = False
        self._last = {"step": 0, "epoch": -1}  # that there is to send
        self._deadline = float("inf")
        name = f"log to {logger.name}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def on_start(self, start: RunStart) -> None:
        """Begin; the tables have lost by now what the checkpoint does not know."""
        self._arrived = Sent("", start.step, start.epochs_reported - 1)
        self._last = {"step": start.step, "epoch": start.epochs_reported - 1}
        self._run = LoggedRun(
            uid=self._uid,
            known_id=self._ids.get(self._logger.name, ""),
            folder=self._folder,
            settings=self._settings,
            step=start.step,
            epochs=start.epochs_reported,
        )
        self._thread.start()

    def on_step(self, report: StepReport) -> None:
        """Remember when it was; the thread finds its row."""
        self._note("step", report.step)

    def on_epoch(self, report: EpochReport) -> None:
        """Likewise."""
        self._note("epoch", report.epoch)

    def on_shares(self, report: SharesReport) -> None:
        """Add each rank's slices to the row of the step, which comes next."""
        self._shares[report.step] = {f"slices/rank{rank}": float(n) for rank, n in enumerate(report.shares)}

    def on_plan(self, report: PlanReport) -> None:
        """Add how many epochs there are to be to the row of the next one."""
        self._plans[report.after] = {"epochs/planned": float(report.schedule.epochs)}

    def on_commit(self, state: dict[str, Any], best: bool) -> None:
        """See whether it is the last one of a run that was asked to stop."""
        if state.get("stopped"):
            self._end = "stopped"

    def on_end(self, results: dict[str, Any]) -> None:
        """Let the thread send what is left, while the report is written."""
        self._results, self._end = results, "finished"
        self._hurry(SECONDS_AT_THE_END)

    def close(self) -> None:
        """Wait for the thread, but not for long; say what it could not send."""
        if self._thread.ident is None:
            return  # the run has not begun
        self._hurry(SECONDS_AT_A_STOP if self._end == "stopped" else SECONDS_OF_A_CHANGE)
        self._thread.join(max(self._deadline - time.monotonic(), 0.1))
        if not self._finished:
            self._say_missing()

    def _note(self, axis: str, number: int) -> None:
        times = self._times[axis]
        times[number] = time.time()
        self._last[axis] = number
        if len(times) > MOST_TIMES:
            del times[next(iter(times))]

    def _hurry(self, seconds: float) -> None:
        if not self._over.is_set():
            self._deadline = time.monotonic() + seconds
            self._over.set()

    def _work(self) -> None:
        while True:
            over = self._over.is_set()  # before it looks: rows that come after are for the next time
            failing = bool(self._refused)
            well = self._tried(self._deliver)
            if over and (well or failing or self._too_late):
                break
            if over:
                time.sleep(SECONDS_BETWEEN / 4)
            else:
                self._over.wait(self._pause_s)
        self._finished = well and self._tried(lambda: self._logger.finish(self._end, self._results))
        self._close_quietly()

    def _deliver(self) -> None:
        """Send all rows that there are."""
        if self._sent is None:
            self._sent = self._arrived = self._logger.open(self._run)
            self._ids[self._logger.name] = self._sent.run_id
            self._tails[0].restart(self._sent.epoch)
            self._tails[1].restart(self._sent.step)
        for tail in self._tails:
            while points := tail.next(MOST_POINTS):
                if self._too_late:  # another thread, or process, may go on with the run already
                    raise TimeoutError("it takes too long")
                self._logger.send(points)
                step, epoch = self._arrived.step, self._arrived.epoch
                now = {"step": step, "epoch": epoch, points[-1].axis: points[-1].number}
                self._arrived = Sent(self._sent.run_id, now["step"], now["epoch"])

    @property
    def _too_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _tried(self, work: Callable[[], None]) -> bool:
        """Whether it went well; it says so once where it does not, and once where it does again."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever a logger's package raises, the run has not failed
            self._note_failure(error)
            return False
        if self._refused:
            log.warning("%s: works again; what it has missed was sent from the tables", self._logger.name)
        self._refused, self._pause_s = "", SECONDS_BETWEEN
        return True

    def _note_failure(self, error: Exception) -> None:
        name, first = self._logger.name, not self._refused
        self._refused = one_line(redacted(str(error))) or type(error).__name__
        if first and not self._over.is_set():
            words = "training goes on, and what it misses is sent when it works again"
            log.warning("%s: %s; %s", name, self._refused, words)
        self._sent = None  # what has arrived is asked for anew
        self._close_quietly()
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _close_quietly(self) -> None:
        try:
            self._logger.close()
        except Exception as error:  # noqa: BLE001 - it has failed already, and that was said
            log.debug("%s: %s", self._logger.name, one_line(redacted(str(error))))

    def _say_missing(self) -> None:
        name, why = self._logger.name, self._refused or "it does not answer in time"
        if not self._logger.confirms:
            words = "%s: not everything has arrived (%s); --resume %s sends what is missing"
            log.warning(words, name, why, self._folder)
            return
        steps = max(self._last["step"] - self._arrived.step, 0)
        epochs = max(self._last["epoch"] - self._arrived.epoch, 0)
        what = f"{steps} steps and {epochs} epochs" if steps or epochs else "the end of the run"
        fix = f"--resume {self._folder} sends them" if steps or epochs else "its numbers are there"
        log.warning("%s: %s did not arrive (%s); %s", name, what, why, fix)
