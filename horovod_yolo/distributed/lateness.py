"""Which ranks others wait for: said while they wait, as Horovod does.

Each rank counts the calls that it has come to, and tells the count now and then. One that waits for long
looks who has not come so far.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import Protocol

log = logging.getLogger(__name__)
VARIABLE = "HOROVOD_STALL_CHECK_TIME_SECONDS"  # one name, whatever ranks talk through
SECONDS_OF_PATIENCE = 30.0
_TELLS = 3  # of the count in that time
_MOST_NAMED = 8


class Board(Protocol):
    """Where all ranks write and read: a store of ``torch.distributed``."""

    def set(self, key: str, value: str) -> None:
        """Write."""

    def check(self, keys: list[str]) -> bool:
        """Whether all were written."""

    def get(self, key: str) -> bytes:
        """Read what was written."""


class Lateness:
    """Of the ranks of a job, seen from one of them.

    Args:
        rank: this one.
        size: number of ranks.
        board: where they tell each other.
        seconds: that a rank waits before it looks; 0: never.
    """

    def __init__(self, rank: int, size: int, board: Board, seconds: float) -> None:
        self._rank, self._size, self._board, self._seconds = rank, size, board, seconds
        self._calls = 0
        self._waits_since: float | None = None
        self._said = 0  # of which call
        self._host = socket.gethostname()

    def start(self) -> None:
        """Tell and look beside training, as long as the board is there."""
        if self._seconds > 0 and self._size > 1:
            threading.Thread(target=self._run, name="lateness", daemon=True).start()

    def come(self) -> None:
        """This rank comes to a call of all ranks."""
        self._calls += 1
        self._waits_since = time.monotonic()

    def go(self) -> None:
        """It has what it waited for."""
        self._waits_since = None

    def _run(self) -> None:
        try:
            while True:
                self.tell()
                self.look(time.monotonic())
                time.sleep(self._seconds / _TELLS)
        except RuntimeError as error:  # rank 0, which keeps the board, has left
            log.debug("late ranks are not looked for any more: %s", error)

    def tell(self) -> None:
        """Let the others know how far this rank is."""
        self._board.set(_key(self._rank), f"{self._calls} {self._host}")

    def look(self, now: float) -> None:
        """Name the ranks that have not come, where this one has waited long and is the first of those there.

        Args:
            now: seconds of the monotonic clock.
        """
        since, calls = self._waits_since, self._calls
        if since is None or now - since < self._seconds or self._said == calls:
            return
        late = []
        for rank in range(self._size):
            told = self._board.get(_key(rank)).decode() if self._board.check([_key(rank)]) else "0 ?"
            count, host = told.split(" ", 1)
            if int(count) < calls:
                late.append(f"rank {rank} on {host}")
            elif rank < self._rank:
                return  # which says it
        if late and self._calls == calls:
            self._said = calls
            more = f" and {len(late) - _MOST_NAMED} more" if len(late) > _MOST_NAMED else ""
            names = ", ".join(late[:_MOST_NAMED])
            log.warning("late: %s%s; others have waited for %.0f s", names, more, now - since)


def _key(rank: int) -> str:
    return f"calls of {rank}"
