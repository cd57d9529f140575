"""What a table has gained since it was last looked at, as points for loggers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from horovod_yolo.telemetry.logger import Axis, Point


class Tail:
    """Reads ``steps.csv`` or ``results.csv`` while another thread appends to it.

    Args:
        path: of the table; its first column is the number of the step or epoch.
        axis: which of the two.
        prefix: of the names.
        times: when what happened, by number, as far as it is known; else it is when this job began. So a row
            that is sent twice is the same to the last digit.
        more: what belongs to rows and is not in the table, by number.
    """

    def __init__(
        self,
        path: Path,
        axis: Axis,
        prefix: str,
        times: Mapping[int, float],
        more: Mapping[int, Mapping[str, float]] = MappingProxyType({}),
    ) -> None:
        self._path = path
        self._axis = axis
        self._prefix = prefix
        self._times = times
        self._more = more
        self._began = time.time()
        self._read = 0  # bytes
        self._columns: list[str] = []
        self._after = -1

    def restart(self, after: int) -> None:
        """Read from the first row again whose number is above ``after``."""
        self._read, self._columns, self._after = 0, [], after

    def next(self, most: int) -> list[Point]:
        """The next points, up to ``most`` of them."""
        found: list[Point] = []
        if not self._path.exists():
            return found
        for line in self._lines():
            if not self._columns:
                self._columns = line.split(",")
                continue
            number, _, rest = line.partition(",")
            if int(number) <= self._after:
                continue
            self._after = int(number)
            found.append(self._point(self._after, rest.split(",")))
            if len(found) == most:
                break
        return found

    def _lines(self) -> Iterator[str]:
        """Whole lines that were not read yet: one without its end is still being written."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                yield line.decode().rstrip("\n")

    def _point(self, number: int, cells: list[str]) -> Point:
        values = dict(self._more.get(number, {}))
        for name, cell in zip(self._columns[1:], cells, strict=True):
            if cell and name != "digest":
                values[self._prefix + name] = float(cell)
        return Point(self._axis, number, self._times.get(number, self._began), values)
