"""Results of several threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
THREADS = 8  # of a rank: they wait for the disk, and decode
AHEAD = 4 * THREADS  # results that may wait to be taken


def made_ahead(make: Callable[[T], R], items: Iterable[T], most: int = AHEAD) -> Generator[R, None, None]:
    """What ``make`` gives of each item, in their order, at most so many of them ahead of time.

    Close it where it is left early: what has not begun is then not begun any more.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS) as threads:
        try:
            for item in items:
                waiting.append(threads.submit(make, item))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
