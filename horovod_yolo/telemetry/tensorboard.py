"""TensorBoard as a logger: a file of events in the run's folder."""

from __future__ import annotations

import io
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from horovod_yolo.telemetry.appended import AppendedFile
from horovod_yolo.telemetry.logger import End, LoggedRun, Point, Sent

NAME = "tensorboard"
_HEADER, _FOOTER = 12, 4  # bytes of a record before and after its content: length and checksums


class TensorBoardLogger:
    """Writes rows as scalars, a record a row.

    Not with torch's ``SummaryWriter``: its thread dies of a full disk, and what it held is lost. What files
    of this run hold already is read from them.
    """

    name = NAME
    confirms = True

    def __init__(self) -> None:
        self._file: AppendedFile | None = None

    def open(self, run: LoggedRun) -> Sent:
        """Begin a file."""
        earlier = sorted(run.folder.glob("events.out.tfevents.*"))
        self._file = AppendedFile(
            run.folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        )
        self._file.append(_record(time.time(), file_version="brain.Event:2"))
        if run.step:
            return _sent(earlier)
        if earlier:  # of another run in this folder: this record lets TensorBoard forget them
            self._file.append(_record(time.time(), step=0, session_log=_start()))
        self._file.append(_record(time.time(), step=0, summary=_text("settings", _table(run.settings))))
        return Sent("")

    def send(self, points: Sequence[Point]) -> None:
        """Add their scalars."""
        assert self._file is not None
        records = [_record(p.time, step=p.number, summary=_scalars(p.values)) for p in points]
        self._file.append(b"".join(records))

    def finish(self, end: End, results: Mapping[str, Any]) -> None:
        """Nothing: the last scalars are the results."""

    def close(self) -> None:
        """Write what the disk has refused so far."""
        if self._file is not None:
            self._file.close()


def _sent(files: Sequence[Path]) -> Sent:
    """The last step and the last epoch in them."""
    step, epoch = 0, -1
    for path in files:
        for event in _events(path):
            names = [value.tag for value in event.summary.value]
            if any(name.startswith("step/") for name in names):
                step = max(step, event.step)
            elif "images_per_s" in names:
                epoch = max(epoch, event.step)
    return Sent("", step, epoch)


def _events(path: Path) -> Iterator[Any]:
    """The whole records of a file; a kill may have cut off the last one."""
    from tensorboard.compat.proto.event_pb2 import Event

    data = memoryview(path.read_bytes())
    at = 0
    while at + _HEADER <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        begin, at = at + _HEADER, at + _HEADER + length + _FOOTER
        if at <= len(data):
            yield Event.FromString(bytes(data[begin : begin + length]))


def _record(at: float, **content: Any) -> bytes:
    """An event as it stands in the file, with its length and checksums."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(wall_time=at, **content).SerializeToString())
    return record.getvalue()


def _scalars(values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _text(name: str, text: str) -> Any:
    """What TensorBoard's page of texts shows."""
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb(name, text)


def _table(settings: Mapping[str, object]) -> str:
    rows = [f"| {name} | {value} |" for name, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _start() -> Any:
    from tensorboard.compat.proto.event_pb2 import SessionLog

    return SessionLog(status=SessionLog.START)
