"""A file that says whose something is, also where hosts share it and their clocks differ.

Its owner touches it every ten seconds. Whoever finds somebody else's asks a judge, who may know more of the
owner. Where he does not, the file is watched: one that stays as it is for a minute of the watcher's own clock
is what a killed owner has left.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

SECONDS_BETWEEN_TOUCHES = 10.0
SECONDS_UNTIL_STALE = 60.0
SECONDS_BETWEEN_LOOKS = 1.0
MOST_BYTES = 4096  # that are read of somebody else's

_log = logging.getLogger(__name__)


class Verdict(Enum):
    """What the owner of a lock that is there is known to be."""

    ALIVE = auto()
    GONE = auto()  # or one that gives way
    UNKNOWN = auto()


class HeldError(Exception):
    """The lock is somebody's who is alive; ``content`` is what he has written into it."""

    def __init__(self, content: bytes) -> None:
        super().__init__("held")
        self.content = content


class FileLock:
    """A lock that is held: a thread touches the file until it is dropped.

    Attributes:
        lost_to: what the file says now, where somebody else has taken it over; else None.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.lost_to: bytes | None = None
        self._path = path
        self._content = content
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, path: Path, content: bytes, judge: Callable[[bytes], Verdict]) -> FileLock:
        """Take the lock; that may last as long as somebody else's must be watched.

        Args:
            path: of the file.
            content: what says whose it is.
            judge: what is known of the owner, from the content of his file.

        Raises:
            HeldError: it is somebody's.
            OSError: the file cannot be made.
        """
        while not _made(path, content):
            found = seen(path)
            if found is None:
                continue
            verdict = judge(found.content)
            if verdict is Verdict.ALIVE or (verdict is Verdict.UNKNOWN and not _is_stale(path, found)):
                raise HeldError(found.content)
            _remove(path, found)
        return cls(path, content)

    def touch(self) -> None:
        """Show that the owner is alive, and see whether it is still his. A deleted one is made anew."""
        try:
            found = seen(self._path)
            if found is not None and found.content != self._content:
                self.lost_to = found.content
            elif found is not None or not _made(self._path, self._content):
                os.utime(self._path)
        except OSError as error:  # the disk does not answer; once more in ten seconds
            _log.debug("%s: %s", self._path, error)

    def drop(self) -> None:
        """Touch it no more, and leave it where it is."""
        self._over.set()
        self._thread.join()

    def release(self) -> None:
        """Drop it, and remove what is ours."""
        self.drop()
        with suppress(OSError):
            found = seen(self._path)
            if found is not None and found.content == self._content:
                self._path.unlink(missing_ok=True)

    def _keep(self) -> None:
        while self.lost_to is None and not self._over.wait(SECONDS_BETWEEN_TOUCHES):
            self.touch()


class Seen(NamedTuple):
    """A lock as it was when somebody looked."""

    content: bytes
    touched_ns: int


def seen(path: Path) -> Seen | None:
    """What is there; None where nothing is. Opening it makes NFS ask the server, which looking would not."""
    try:
        with path.open("rb") as file:
            return Seen(file.read(MOST_BYTES), os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None


def _made(path: Path, content: bytes) -> bool:
    """Make the file; False where there is one."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _is_stale(path: Path, found: Seen) -> bool:
    """Whether nobody touches the file within the time after which nobody will; also where it goes."""
    _log.info("%s is watched for up to %.0f s: is its owner alive?", path, SECONDS_UNTIL_STALE)
    end = time.monotonic() + SECONDS_UNTIL_STALE
    while (now := seen(path)) == found and time.monotonic() < end:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return now is None or now == found


def _remove(path: Path, found: Seen) -> None:
    """Take away a lock that was found, and not one that somebody has made meanwhile."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    moved = seen(aside)
    if moved is not None and moved.content != found.content:
        with suppress(OSError):  # there is another one by now: its owner sees that he has lost this
            os.link(aside, path)
    aside.unlink(missing_ok=True)
