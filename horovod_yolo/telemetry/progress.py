"""What a person sees while a run goes: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from horovod_yolo.training.events import Callback, EpochReport, PlanReport, RunStart, StepReport

SECONDS_BETWEEN_LINES = 20.0  # in a log file; a terminal redraws its bar instead


class ProgressDisplay(Callback):
    """Losses, images a second and the time left, epoch by epoch.

    Args:
        alone: whether this process has the terminal for itself. Launchers prefix every write of a rank,
            and Open MPI gives ranks a pseudo-terminal, so a bar there would fill the screen.
    """

    def __init__(self, alone: bool) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not (alone and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=None, note="")
        self._epoch, self._done, self._images = -1, 0, 0
        self._started = self._printed = 0.0

    def on_start(self, start: RunStart) -> None:
        """Begin the bar."""
        self._schedule = start.schedule
        self._epochs = start.schedule.epochs
        self._started = self._printed = time.perf_counter()
        self._bar.start()

    def on_plan(self, report: PlanReport) -> None:
        """Count up to another number of epochs."""
        self._schedule, self._epochs = report.schedule, report.schedule.epochs

    def on_step(self, report: StepReport) -> None:
        """Move the bar, or print a line now and then."""
        if report.epoch != self._epoch:
            self._begin(report.epoch)
        self._done += 1
        self._images += report.result.images
        now = time.perf_counter()
        speed = self._images / max(now - self._started, 1e-9)
        note = f"{_shown(report.result.losses)}  {speed:.1f} images/s"
        self._bar.update(self._task, completed=self._done, note=note)
        if self._bar.disable and now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            left = (now - self._started) / self._done * (self._total - self._done)
            self._console.print(
                f"epoch {report.epoch + 1}/{self._epochs}  step {self._done}/{self._total}  {note}  "
                f"{left:.0f} s left in the epoch"
            )

    def on_epoch(self, report: EpochReport) -> None:
        """Print an epoch's line, which stays."""
        speed = report.images / report.seconds
        line = f"epoch {report.epoch + 1}/{self._epochs}  {_shown(report.losses)}  {speed:.1f} images/s"
        if report.evaluation:
            s = report.evaluation.summary
            line += (
                f"  |  P {s.precision:.3f}  R {s.recall:.3f}  mAP50 {s.map50:.3f}  mAP50-95 {s.map50_95:.3f}"
            )
        left = report.seconds * (self._epochs - report.epoch - 1)
        self._console.print(line + (f"  |  about {left / 60:.0f} min left" if left >= 60 else ""))
        self._started = self._printed = time.perf_counter()

    def on_end(self, results: dict[str, Any]) -> None:
        """Leave the terminal as it was."""
        self.close()

    def close(self) -> None:
        """The same where a run does not end well."""
        self._bar.stop()

    def _begin(self, epoch: int) -> None:
        self._epoch, self._done, self._images = epoch, 0, 0
        self._total = sum(1 for _ in self._schedule.windows(epoch))
        self._bar.reset(
            self._task, total=self._total, description=f"epoch {epoch + 1}/{self._epochs}", note=""
        )


def _shown(losses: Mapping[str, float]) -> str:
    return "  ".join(f"{term} {value:.4f}" for term, value in losses.items())
