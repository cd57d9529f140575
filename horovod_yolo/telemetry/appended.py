"""A file that grows while a run goes, on a disk that may be full for a while."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class AppendedFile:
    """Takes rows or records one after the other.

    A disk that refuses one does not end the run: it waits in memory and is written with a later one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = 0  # bytes of complete entries in the file
        self._waiting: list[bytes] = []
        self._refused = False

    def go_on_after(self, whole: int) -> None:
        """Keep the first ``whole`` bytes of what is there."""
        self._whole, self._waiting = whole, []
        self.append(b"")

    def append(self, entry: bytes) -> None:
        """Add an entry, and those that wait."""
        self._waiting.append(entry)
        problem = self._write()
        if problem and not self._refused:
            log.warning("%s: %s; what belongs there waits in memory for the disk", self.path, problem)
        elif self._refused and not problem:
            log.warning("%s: written again, nothing is lost", self.path)
        self._refused = problem is not None

    def close(self) -> None:
        """Try a last time; say what is lost, once."""
        problem = self._write() if self._waiting else None
        if problem:
            log.warning("%s: %s; its last %d entries are lost", self.path, problem, len(self._waiting))
            self._waiting.clear()

    def _write(self) -> str | None:
        """Write what waits, over the torn end of an earlier try; why not, where the disk refuses it."""
        try:
            with self.path.open("ab") as file:
                if file.tell() > self._whole:
                    file.truncate(self._whole)
                file.write(b"".join(self._waiting))
                file.flush()
                self._whole = file.tell()
        except OSError as error:
            return error.strerror or str(error)
        self._waiting.clear()
        return None
