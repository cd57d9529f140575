"""TensorBoard events of a run; only where the ``tensorboard`` package is installed."""

from __future__ import annotations

import importlib.util
import io
import socket
import time
from pathlib import Path
from typing import Any

from horovod_yolo.telemetry.appended import AppendedFile
from horovod_yolo.telemetry.csv_log import epoch_row
from horovod_yolo.training.events import Callback, EpochReport, PlanReport, RunStart, SharesReport


def available() -> bool:
    """Whether events can be written."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard(Callback):
    """Writes the columns of ``results.csv`` as scalars.

    Not with torch's ``SummaryWriter``: its thread dies of a full disk, and what it held is lost.
    """

    def __init__(self, folder: Path) -> None:
        self._file = AppendedFile(folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}")

    def on_start(self, start: RunStart) -> None:
        """Begin the file."""
        self._file.append(_record(file_version="brain.Event:2"))

    def on_epoch(self, report: EpochReport) -> None:
        """Add an epoch's scalars."""
        for name, value in epoch_row(report).items():
            if isinstance(value, float):
                self._file.append(_record(step=report.epoch, summary=_scalar(name, value)))

    def on_shares(self, report: SharesReport) -> None:
        """Add each rank's slices, by step."""
        for rank, share in enumerate(report.shares):
            self._file.append(_record(step=report.step, summary=_scalar(f"slices/rank{rank}", float(share))))

    def on_plan(self, report: PlanReport) -> None:
        """Add how many epochs there are to be, by those that are over."""
        planned = _scalar("epochs/planned", float(report.schedule.epochs))
        self._file.append(_record(step=report.after, summary=planned))

    def on_end(self, results: dict[str, Any]) -> None:
        """Write what the disk has refused so far."""
        self.close()

    def close(self) -> None:
        """The same where a run does not end well."""
        self._file.close()


def _record(**content: Any) -> bytes:
    """An event as it stands in the file, with its length and checksums."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
    return record.getvalue()


def _scalar(name: str, value: float) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value)])
