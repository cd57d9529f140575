"""``gradients.ring``: the digests of every slice's gradients in the last steps of a run.

A line of JSON says what is in the file. After it come as many places as steps are kept, each with the number
of its step, of its batches, a checksum, and (batches, slices, tensors) int64, little-endian.
"""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from horovod_yolo.core.types import Ints
from horovod_yolo.training.events import Callback, RunStart, StepReport

log = logging.getLogger(__name__)
NAME = "gradients.ring"
VERSION = 1
_LONGEST_HEADER = 1 << 20
_MOST = 1 << 31  # of anything that is counted
_HEAD = struct.Struct("<qiI")  # step, batches, CRC-32 of what follows; a step of 0: nothing is there


@dataclass(frozen=True)
class Layout:
    """What is in such a file."""

    steps: int  # that are kept
    batches: int  # of a step, at most
    slices: int
    tensors: tuple[str, ...]

    @property
    def bytes_of_a_step(self) -> int:
        """Its place in the file."""
        return _HEAD.size + 8 * self.batches * self.slices * len(self.tensors)

    def header(self) -> bytes:
        """The first line."""
        return json.dumps({"version": VERSION, **vars(self)}).encode() + b"\n"


class GradientRecord(Callback):
    """Keeps the last steps in the run's folder. A disk that refuses one does not end the run.

    Args:
        folder: of the run.
        steps: how many are kept.
        slices: of each batch.
        tensors: names of those that have gradients.
    """

    def __init__(self, folder: Path, steps: int, slices: int, tensors: Sequence[str]) -> None:
        self._path = folder / NAME
        self._steps, self._slices, self._tensors = steps, slices, tuple(tensors)
        self._refused = False

    def on_start(self, start: RunStart) -> None:
        """Begin the file, or go on with it after the step that the run goes on from."""
        self._layout = Layout(self._steps, start.schedule.accumulate, self._slices, self._tensors)
        self._header = self._layout.header()
        try:
            with self._path.open("ab"):
                pass
            with self._path.open("r+b") as file:
                if file.readline(_LONGEST_HEADER) == self._header:
                    for place, step in list(_places(file, self._layout)):
                        if step > start.step:
                            file.seek(place)
                            file.write(bytes(_HEAD.size))
                else:
                    file.seek(0)
                    file.truncate()
                    file.write(self._header)
        except OSError as error:
            self._say(error)

    def on_step(self, report: StepReport) -> None:
        """Write a step over the oldest one."""
        digests = report.result.slice_digests
        if digests is None:
            return
        data = digests.astype("<i8").tobytes()
        place = len(self._header) + report.step % self._steps * self._layout.bytes_of_a_step
        try:
            with self._path.open("r+b") as file:
                file.seek(place)
                file.write(_HEAD.pack(report.step, len(digests), zlib.crc32(data)) + data)
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        level = logging.DEBUG if self._refused else logging.WARNING
        self._refused = True
        log.log(level, "%s: %s; steps are missing there", self._path, error.strerror or error)


def recorded_gradients(folder: Path) -> tuple[Layout, dict[int, Ints]] | None:
    """What a run has recorded: (batches, slices, tensors) for each step; None where it has no such file.

    A place that was not written whole is left out.

    Raises:
        OSError: it cannot be read.
        ValueError: it is some other file.
    """
    try:
        with (folder / NAME).open("rb") as file:
            layout = _layout(file.readline(_LONGEST_HEADER))
            return layout, dict(_read(file, layout))
    except FileNotFoundError:
        return None


def _layout(header: bytes) -> Layout:
    values = json.loads(header)
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise ValueError("of another version")
    numbers: dict[str, Any] = {name: values.get(name) for name in ("steps", "batches", "slices")}
    tensors: Any = values.get("tensors")
    sound = isinstance(tensors, list) and tensors and all(isinstance(name, str) for name in tensors)
    if not sound or not all(type(number) is int and 0 < number < _MOST for number in numbers.values()):
        raise ValueError("it does not say what is in it")
    return Layout(**numbers, tensors=tuple(tensors))


def _places(file: BinaryIO, layout: Layout) -> Iterator[tuple[int, int]]:
    """Where each step is, and which it is. The file stands after its first line."""
    start = file.tell()
    for number in range(layout.steps):
        place = start + number * layout.bytes_of_a_step
        file.seek(place)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            break
        if step := _HEAD.unpack(head)[0]:
            yield place, step


def _read(file: BinaryIO, layout: Layout) -> Iterator[tuple[int, Ints]]:
    for place, step in list(_places(file, layout)):
        file.seek(place)
        _, batches, checksum = _HEAD.unpack(file.read(_HEAD.size))
        if not 0 < batches <= layout.batches:
            continue
        shape = (batches, layout.slices, len(layout.tensors))
        size = 8 * math.prod(shape)
        here = file.tell()
        data = file.read(size) if here + size <= file.seek(0, os.SEEK_END) and file.seek(here) else b""
        if data and zlib.crc32(data) == checksum:
            yield step, np.frombuffer(data, "<i8").reshape(shape).astype(np.int64)
