"""``steps.csv`` and ``results.csv``: a line a step, a line an epoch, written as they happen."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from horovod_yolo.telemetry.appended import AppendedFile
from horovod_yolo.telemetry.base import Watcher

if TYPE_CHECKING:
    from horovod_yolo.training.loop import EpochReport, StepReport, Trainer

STEP_COLUMNS = ("step", "epoch", "images", "lr", "box_loss", "obj_loss", "cls_loss", "grad_norm")
EPOCH_COLUMNS = (
    "epoch",
    "train/box_loss",
    "train/obj_loss",
    "train/cls_loss",
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/obj_loss",
    "val/cls_loss",
    "x/lr0",
    "x/lr1",
    "x/lr2",
    "images_per_s",
    "data_wait_s",
    "comm_wait_s",
)


class CsvFile:
    """A table on disk that grows by rows and, on resume, loses those the checkpoint does not know."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path = path
        self._columns = columns
        self._file = AppendedFile(path)

    def keep_below(self, limit: int) -> None:
        """Drop the first row whose first column is ``limit`` or more, and all after it.

        The same goes for a row that a power cut left incomplete. Starts the file where there is none.
        """
        header = (",".join(self._columns) + "\n").encode()
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines[:1] == [header]:
            kept = itertools.takewhile(lambda line: self._is_row_below(limit, line), lines[1:])
            self._file.go_on_after(len(header) + sum(map(len, kept)))
        else:
            self._file.go_on_after(0)
            self._file.append(header)

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row; where the disk refuses it, it waits for a later one."""
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerow(row)
        self._file.append(text.getvalue().encode())

    def close(self) -> None:
        """Write what the disk has refused so far."""
        self._file.close()

    def _is_row_below(self, limit: int, line: bytes) -> bool:
        number, *rest = line.decode(errors="replace").split(",")
        complete = line.endswith(b"\n") and len(rest) == len(self._columns) - 1
        return complete and number.isdecimal() and int(number) < limit


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a ``results.csv``; empty cells are left out."""
    with path.open(newline="") as file:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]


class StepLog(Watcher):
    """Writes ``steps.csv``. Numbers have all digits: two runs are compared by it."""

    def __init__(self, folder: Path) -> None:
        self._file = CsvFile(folder / "steps.csv", STEP_COLUMNS)

    def on_start(self, trainer: Trainer) -> None:
        """Go on after the step the run resumes from."""
        self._file.keep_below(trainer.progress.step + 1)

    def on_step(self, report: StepReport) -> None:
        """Add a line."""
        result = report.result
        values = (report.step, report.epoch, result.images, report.rates.lr)
        losses = (result.box_loss, result.obj_loss, result.cls_loss, result.grad_norm)
        self._file.append(dict(zip(STEP_COLUMNS, values + losses, strict=True)))

    def on_end(self, results: dict[str, Any]) -> None:
        """Write what is left."""
        self.close()

    def close(self) -> None:
        """The same where a run does not end well."""
        self._file.close()


class EpochLog(Watcher):
    """Writes ``results.csv`` under YOLOv5's column names."""

    def __init__(self, folder: Path) -> None:
        self._file = CsvFile(folder / "results.csv", EPOCH_COLUMNS)

    def on_start(self, trainer: Trainer) -> None:
        """Go on after the last epoch the run has finished."""
        self._file.keep_below(trainer.progress.epoch)

    def on_epoch(self, report: EpochReport) -> None:
        """Add a line."""
        self._file.append(epoch_row(report))

    def on_end(self, results: dict[str, Any]) -> None:
        """Write what is left."""
        self.close()

    def close(self) -> None:
        """The same where a run does not end well."""
        self._file.close()


def epoch_row(report: EpochReport) -> dict[str, object]:
    """An epoch's line of ``results.csv``; cells of an epoch without validation stay empty."""
    row: dict[str, object] = {"epoch": report.epoch}
    row |= dict(zip(EPOCH_COLUMNS[1:4], report.losses, strict=True))
    if report.evaluation:
        summary, found = report.evaluation.summary, report.evaluation
        scores = (summary.precision, summary.recall, summary.map50, summary.map50_95)
        losses = (found.box_loss, found.obj_loss, found.cls_loss)
        row |= dict(zip(EPOCH_COLUMNS[4:11], scores + losses, strict=True))
    row |= {"x/lr0": report.rates.bias_lr, "x/lr1": report.rates.lr, "x/lr2": report.rates.lr}
    row["images_per_s"] = round(report.images / report.seconds, 2)
    row["data_wait_s"] = round(report.data_wait_s, 3)
    row["comm_wait_s"] = round(report.comm_wait_s, 3)
    return row
