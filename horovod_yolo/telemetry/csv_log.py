"""``steps.csv`` and ``results.csv``: a line a step, a line an epoch, written as they happen."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from horovod_yolo.core.digest import shown
from horovod_yolo.telemetry.appended import AppendedFile
from horovod_yolo.training.events import Callback, EpochReport, RunStart, StepReport


def step_columns(terms: Sequence[str]) -> tuple[str, ...]:
    """Columns of ``steps.csv`` for loss terms of these names."""
    return ("step", "epoch", "images", "lr", *(f"{term}_loss" for term in terms), "grad_norm", "digest")


def epoch_columns(terms: Sequence[str], taught: Collection[str] = ()) -> tuple[str, ...]:
    """Columns of ``results.csv`` for loss terms of these names: YOLOv5's, then ours.

    Validation has none of those that a teacher ``taught``.
    """
    return (
        "epoch",
        *(f"train/{term}_loss" for term in terms),
        "metrics/precision",
        "metrics/recall",
        "metrics/mAP_0.5",
        "metrics/mAP_0.5:0.95",
        *(f"val/{term}_loss" for term in terms if term not in taught),
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
        csv.DictWriter(text, self._columns, extrasaction="ignore", lineterminator="\n").writerow(row)
        self._file.append(text.getvalue().encode())

    def close(self) -> None:
        """Write what the disk has refused so far."""
        self._file.close()

    def _is_row_below(self, limit: int, line: bytes) -> bool:
        number, *rest = line.decode(errors="replace").split(",")
        complete = line.endswith(b"\n") and len(rest) == len(self._columns) - 1
        return complete and number.isdecimal() and int(number) < limit


def has_columns(path: Path, columns: Sequence[str]) -> bool:
    """Whether a table is there with just these columns."""
    if not path.exists():
        return False
    with path.open(newline="", errors="replace") as file:
        return next(csv.reader(file), None) == [*columns]


class TableLog(Callback):
    """A callback that fills a table, whose columns are known when the run starts."""

    _file: CsvFile | None = None

    def _open(self, path: Path, columns: tuple[str, ...], limit: int) -> None:
        self._file = CsvFile(path, columns)
        self._file.keep_below(limit)

    def _append(self, row: Mapping[str, object]) -> None:
        assert self._file is not None
        self._file.append(row)

    def on_end(self, results: dict[str, Any]) -> None:
        """Write what is left."""
        self.close()

    def close(self) -> None:
        """The same where a run does not end well."""
        if self._file is not None:
            self._file.close()


class StepLog(TableLog):
    """Writes ``steps.csv``. Numbers have all digits: two runs are compared by it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "steps.csv"

    def on_start(self, start: RunStart) -> None:
        """Go on after the step the run resumes from."""
        columns = step_columns(start.terms)
        if has_columns(self._path, columns[:-1]):  # a version without digests began it, and it stays so
            columns = columns[:-1]
        self._open(self._path, columns, start.step + 1)

    def on_step(self, report: StepReport) -> None:
        """Add a line."""
        self._append(step_row(report))


class EpochLog(TableLog):
    """Writes ``results.csv`` under YOLOv5's column names."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "results.csv"

    def on_start(self, start: RunStart) -> None:
        """Go on after the last epoch that has its line."""
        self._open(self._path, epoch_columns(start.terms, start.taught), start.epochs_reported)

    def on_epoch(self, report: EpochReport) -> None:
        """Add a line."""
        self._append(epoch_row(report))


def step_row(report: StepReport) -> dict[str, object]:
    """A step's line of ``steps.csv``."""
    result = report.result
    row = {"step": report.step, "epoch": report.epoch, "images": result.images, "lr": report.rates.lr}
    losses = {f"{term}_loss": value for term, value in result.losses.items()}
    digest = None if result.digest is None else shown(result.digest)
    return {**row, **losses, "grad_norm": result.grad_norm, "digest": digest}


def epoch_row(report: EpochReport) -> dict[str, object]:
    """An epoch's line of ``results.csv``; an epoch without validation has no cells for it."""
    row: dict[str, object] = {"epoch": report.epoch}
    row |= {f"train/{term}_loss": value for term, value in report.losses.items()}
    if report.evaluation:
        summary = report.evaluation.summary
        row |= {
            "metrics/precision": summary.precision,
            "metrics/recall": summary.recall,
            "metrics/mAP_0.5": summary.map50,
            "metrics/mAP_0.5:0.95": summary.map50_95,
        }
        row |= {f"val/{term}_loss": value for term, value in report.evaluation.losses.items()}
    row |= {"x/lr0": report.rates.bias_lr, "x/lr1": report.rates.lr, "x/lr2": report.rates.lr}
    row["images_per_s"] = round(report.images / report.seconds, 2)
    row["data_wait_s"] = round(report.data_wait_s, 3)
    row["comm_wait_s"] = round(report.comm_wait_s, 3)
    return row
