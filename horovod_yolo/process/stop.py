"""A request to end the run early: by a signal, or by the launcher."""

from __future__ import annotations

import threading
from collections.abc import Callable


def _stay(words: str) -> None:
    """Nobody listens for requests, so none can come."""


class StopRequest:
    """Whether this rank was asked to stop, and whether it may do so alone.

    While steps are made it may not: the others would wait for it. There the request is a flag that travels
    with a sum the ranks form anyway, so that all of them see it in the same step. Before the first step and
    after the last checkpoint nothing is lost, and a rank that is asked leaves at once.

    Args:
        leave: ends this process; gets the words to say.
    """

    def __init__(self, leave: Callable[[str], None] = _stay) -> None:
        self.asked = False
        self.certain = False  # where a launcher stops ranks to start others, it asks as well
        self._leave = leave
        self._lock = threading.Lock()  # requests come from another thread
        self._nothing_lost = "before the first step; nothing was trained"

    def ask(self, *, certain: bool = True) -> None:
        """Note a request; where nothing is lost, leave.

        Args:
            certain: it is somebody's who wants the job to end, and not only a launcher's own.
        """
        with self._lock:
            self.asked = True
            self.certain |= certain
            if self._nothing_lost:
                self._leave(self._nothing_lost)

    def agree_from_here(self) -> None:
        """From now on a request waits until all ranks have seen it."""
        with self._lock:
            self._nothing_lost = ""

    def alone_from_here(self, words: str) -> None:
        """From now on nothing is lost, and this rank may leave alone.

        Args:
            words: what to say: when it left and what is kept.
        """
        with self._lock:
            self._nothing_lost = words
            if self.asked:
                self._leave(words)
