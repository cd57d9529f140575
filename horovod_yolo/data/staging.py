"""The copier: fills a stage (`stage.py`) from its source while training reads both.

One process of a host copies, whoever has the folder's lock; the kernel takes it from a killed one. What goes
wrong is said in a line, and costs the copies alone.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from horovod_yolo.data.stage import Staged, UnreadError
from horovod_yolo.io.atomic import replacing
from horovod_yolo.io.private import own_folder

LOCK = "lock"
GB = 1e9
OF_DISK = 0.95  # of what is free; the rest is for what else the job writes
SECONDS_BETWEEN_LINES = 60.0
SECONDS_BETWEEN_TRIES = 5.0  # for a lock that another job has
SECONDS_TO_END = 5.0  # a thread that waits for a disk that is gone must not keep the job

_log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The job is over."""


class Copier:
    """A thread that copies what is missing of some splits, one after the other, until it is closed.

    Args:
        splits: which share a folder.
        source: what messages call the data set.

    Attributes:
        done: set when nothing is left that it could copy.
    """

    def __init__(self, splits: Sequence[Staged], source: str) -> None:
        self.done = threading.Event()
        self._splits = splits
        self._source = source
        self._folder = splits[0].folder
        self._lost = self._copied = 0
        self._began = self._shown = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stage", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it; nothing is left of what it was about to copy."""
        self._stop.set()
        self._thread.join(SECONDS_TO_END)

    def _run(self) -> None:
        lock = -1
        try:
            lock = self._locked()
            self._fill()
        except OSError as error:
            what = f"{self._folder} takes no more copies ({error.strerror or error})"
            _log.warning("stage: %s; %s", what, self._state())
        except _StoppedError:
            _log.debug("stage: %s", self._state())
        finally:
            self.done.set()
            self._stop.wait()  # with the lock: the folder is in use
            if lock >= 0:
                os.close(lock)

    def _locked(self) -> int:
        """The folder's lock. Where another job has it, that one copies for both."""
        own_folder(self._folder)
        lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        said = False
        try:
            while not _take(lock):
                if not said:
                    _log.info("stage: another job on %s fills %s", socket.gethostname(), self._folder)
                said = True
                if self._stop.wait(SECONDS_BETWEEN_TRIES):
                    raise _StoppedError
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _fill(self) -> None:
        self._tidy()
        missing = [(staged, part) for staged in self._splits for part in staged.missing()]
        sizes = [int(staged.parts.sizes[part]) for staged, part in missing]
        needed, free = sum(sizes), int(OF_DISK * shutil.disk_usage(self._folder).free)
        place = f"{self._folder} on {socket.gethostname()}"
        said = f"{needed / GB:.2f} GB are to be copied to {place}, {free / GB:.2f} GB are free there"
        _log.log(logging.WARNING if needed > free else logging.INFO, "stage: %s", said)
        room, left_out = free, 0
        for (staged, part), size in zip(missing, sizes, strict=True):
            if size > room:
                left_out += size
                continue
            room -= size
            with suppress(UnreadError):
                self._copy(staged, part, needed)
        if left_out or self._lost:
            _log.warning("stage: %s; %.2f GB have no room there", self._state(), left_out / GB)
        else:
            copied = f"{self._copied / GB:.2f} GB copied in {time.monotonic() - self._began:.0f} s"
            _log.info("stage: all images are in %s, %s", place, copied)

    def _copy(self, staged: Staged, part: int, needed: int) -> None:
        """Copy a part.

        Raises:
            UnreadError: the source does not give it; that was said.
            OSError: the stage does not take it.
        """
        with replacing(staged.path(part)) as file:
            for piece in self._pieces(staged, part):
                file.write(piece)
                self._copied += len(piece)
                if time.monotonic() > self._shown + SECONDS_BETWEEN_LINES:
                    self._shown = time.monotonic()
                    _log.info("stage: %.2f of %.2f GB copied", self._copied / GB, needed / GB)

    def _pieces(self, staged: Staged, part: int) -> Iterator[bytes]:
        for piece in staged.parts.pieces(part, self._lose):
            if self._stop.is_set():
                raise _StoppedError
            yield piece

    def _lose(self, what: str) -> None:
        if not self._lost:
            _log.warning("stage: %s; not copied, and others like it are counted in the end", what)
        self._lost += 1

    def _state(self) -> str:
        copied = f"{self._copied / GB:.2f} GB copied"
        if self._lost:
            copied += f", {self._lost} files could not be"
        return f"{copied}; what is not there is read from {self._source}"

    def _tidy(self) -> None:
        """Remove what killed copiers have left, and stages of the same data file with other content."""
        for path in self._folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        data = self._folder.name.partition("-")[0]
        for folder in self._folder.parent.glob(f"{data}-*"):
            if folder == self._folder:
                continue
            with suppress(FileNotFoundError):
                lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if _take(lock):
                        _log.info("stage: %s is of what the data was before: removed", folder)
                        shutil.rmtree(folder)
                finally:
                    os.close(lock)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
