"""What is known of a run while it goes, for whoever asks: the page and Prometheus."""

from __future__ import annotations

import csv
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from horovod_yolo.core.text import plain
from horovod_yolo.report.finished import epochs_of
from horovod_yolo.telemetry.csv_log import epoch_row, step_row
from horovod_yolo.training.events import Callback, EpochReport, PlanReport, RankTime, RunStart, StepReport
from horovod_yolo.training.schedule import Schedule, Window

MOST_POINTS = 600  # of a curve; of more every second is left out, again and again
RECENT = 30  # steps whose mean is the speed of now
LINES = 200  # of the log
Row = dict[str, Any]


class Tail(logging.Handler):
    """Keeps the last messages of this process."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[Row] = deque(maxlen=LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Add a message."""
        try:
            text = plain(record.getMessage())
        except (TypeError, ValueError):  # words and arguments do not fit: other handlers say so
            text = plain(str(record.msg))
        self._lines.append({"at": record.created, "level": record.levelname.lower(), "text": text})

    def lines(self) -> list[Row]:
        """The messages, the oldest first."""
        self.acquire()
        try:
            return list(self._lines)
        finally:
            self.release()


class Curve:
    """Rows in the order in which they came: all of them while they are few, else evenly fewer."""

    def __init__(self, most: int = MOST_POINTS) -> None:
        self.rows: list[Row] = []
        self.every = 1
        self._most, self._seen = most, 0

    def add(self, row: Row) -> None:
        """Take in the next row."""
        if self._seen % self.every == 0:
            self.rows.append(row)
        self._seen += 1
        if len(self.rows) > self._most:
            self.rows, self.every = self.rows[::2], 2 * self.every


@dataclass
class Rank:
    """What a rank has done since this job began."""

    images: int = 0
    seconds: float = 0.0
    data_wait_s: float = 0.0
    rank_wait_s: float = 0.0
    recent: deque[RankTime] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, time: RankTime) -> None:
        """Take in a step."""
        self.images += time.images
        self.seconds += time.seconds
        self.data_wait_s += time.data_wait_s
        self.rank_wait_s += time.rank_wait_s
        self.recent.append(time)

    @property
    def images_per_s(self) -> float:
        """In the last steps."""
        return sum(t.images for t in self.recent) / (sum(t.seconds for t in self.recent) or 1.0)


@dataclass(frozen=True)
class Now:
    """A run at a moment."""

    facts: Mapping[str, Any]  # that do not change
    phase: str
    epoch: int  # that is trained, from 0
    epochs: int
    batches: tuple[int, int]  # of the epoch: done, all
    step: int
    images: int  # that this job has trained on
    skipped: int
    replaced: int
    images_per_s: float
    last: StepReport | None
    validated: EpochReport | None
    ranks: tuple[Rank, ...]
    checkpoint_at: float | None  # seconds since 1970
    started_at: float

    @property
    def scores(self) -> Mapping[str, float]:
        """Of the last validation; empty before the first."""
        evaluation = self.validated.evaluation if self.validated is not None else None
        return evaluation.summary.scores if evaluation is not None else {}


class LiveRun(Callback):
    """Takes in what happens; asked by other threads, it answers from memory.

    A step waits for nobody who asks: what is shared is held for as long as it takes to copy it.

    Args:
        folder: of the run, whose tables a resumed run's curves begin with.
        facts: about the run, by name.
        checkpoint_at: when the last checkpoint was written, seconds since 1970.
    """

    def __init__(
        self, folder: Path, facts: dict[str, Any], checkpoint_at: Callable[[], float | None]
    ) -> None:
        self.tail = Tail()
        self.facts = facts
        self.steps, self.epochs = Curve(), Curve()
        self._folder = folder
        self._checkpoint_at = checkpoint_at
        self._lock = threading.Lock()
        self._ranks: list[Rank] = []
        self._recent: deque[tuple[float, int]] = deque(
            maxlen=RECENT + 1
        )  # when steps ended, and their images
        self._schedule: Schedule | None = None
        self._windows: Iterator[Window] = iter(())
        self._now = Now(
            facts, "preparing", 0, 0, (0, 0), 0, 0, 0, 0, 0.0, None, None, (), None, started_at=time.time()
        )

    def now(self) -> Now:
        """The run at this moment."""
        written = self._checkpoint_at()
        with self._lock:
            ranks = tuple(replace(rank, recent=rank.recent.copy()) for rank in self._ranks)
            return replace(self._now, ranks=ranks, checkpoint_at=written)

    def curves(self) -> dict[str, Any]:
        """Rows over steps and over epochs, both from 1."""
        with self._lock:
            steps, epochs = list(self.steps.rows), list(self.epochs.rows)
        return {"steps": steps, "every": self.steps.every, "epochs": epochs}

    def on_start(self, start: RunStart) -> None:
        """Begin with what the tables know of the steps before."""
        earlier, epochs = _earlier(self._folder, start)
        with self._lock:
            self._schedule = start.schedule
            for row in earlier:
                self.steps.add(row)
            for row in epochs:
                self.epochs.add(row)
            self._now = replace(self._now, epochs=start.schedule.epochs, step=start.step)
            self._begin_epoch(start.epoch, start.batch)

    def on_step(self, report: StepReport) -> None:
        """Take in a step."""
        result, at = report.result, time.perf_counter()
        with self._lock:
            if report.epoch != self._now.epoch:
                self._begin_epoch(report.epoch)
            self._recent.append((at, result.images))
            (first, _), *others = self._recent
            speed = sum(images for _, images in others) / max(at - first, 1e-9)
            if len(result.ranks) != len(self._ranks):
                self._ranks = [Rank() for _ in result.ranks]
            for rank, spent in zip(self._ranks, result.ranks, strict=True):
                rank.add(spent)
            window = next(self._windows)
            done, whole = window.first_batch + window.batches, self._now.batches[1]
            self._now = replace(
                self._now,
                phase="training" if done < whole else "validating",
                batches=(done, whole),
                step=report.step,
                images=self._now.images + result.images,
                skipped=self._now.skipped + result.skipped,
                replaced=self._now.replaced + result.replaced,
                images_per_s=speed,
                last=report,
            )
            row = {name: value for name, value in step_row(report).items() if name != "digest"}
            self.steps.add({**row, "images_per_s": speed})

    def on_plan(self, report: PlanReport) -> None:
        """Go by another number of epochs."""
        with self._lock:
            self._schedule = report.schedule
            self._now = replace(self._now, epochs=report.schedule.epochs)

    def on_epoch(self, report: EpochReport) -> None:
        """Take in an epoch."""
        with self._lock:
            row = epoch_row(report)
            self.epochs.add({**row, "epoch": report.epoch + 1})
            validated = report if report.evaluation else self._now.validated
            self._now = replace(self._now, validated=validated)
            self._begin_epoch(report.epoch + 1)

    def on_end(self, results: dict[str, Any]) -> None:
        """The report is being made."""
        with self._lock:
            self._now = replace(self._now, phase="ending")

    def _begin_epoch(self, epoch: int, batch: int = 0) -> None:
        assert self._schedule is not None
        self._windows = self._schedule.windows(epoch, batch)
        batches = batch, self._schedule.batches_per_epoch
        self._now = replace(self._now, epoch=epoch, batches=batches, phase="training")
        self._recent.clear()
        self._recent.append((time.perf_counter(), 0))


def _earlier(folder: Path, start: RunStart) -> tuple[list[Row], list[Row]]:
    """Rows over steps and epochs of what was trained before; none where the tables are not readable."""
    if start.step == 0:
        return [], []
    try:
        steps = _sampled(folder / "steps.csv", start.step)
        epochs = [row for row in epochs_of(folder) if row["epoch"] <= start.epochs_reported]
    except (OSError, ValueError):
        return [], []
    return steps, [dict(row) for row in epochs]


def _sampled(path: Path, last: int) -> list[Row]:
    """Some hundred rows of ``steps.csv``, from all over it, up to step ``last``: it may have millions."""
    size, found = path.stat().st_size, dict[int, Row]()
    with path.open("rb") as file:
        header = file.readline().decode().strip().split(",")
        begin = file.tell()
        for k in range(MOST_POINTS // 2):
            file.seek(begin + (size - begin) * k // (MOST_POINTS // 2))
            if k:
                file.readline()  # the rest of a row
            cells = next(csv.reader([file.readline().decode()]), [])
            shown = ((name, cell) for name, cell in zip(header, cells, strict=False) if name != "digest")
            row = {name: float(cell) for name, cell in shown if cell}
            if len(cells) == len(header) and row.get("step", last + 1) <= last:
                found[int(row["step"])] = row
    return [found[step] for step in sorted(found)]
