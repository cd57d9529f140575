"""A job whose world changes: ranks are lost, others come, and training goes on from the last commit.

It is Horovod's elastic run, over Gloo. When a rank is lost, a collective call of the others fails with
`HorovodInternalError`; when the launcher finds a host, a commit raises `HostsUpdatedInterrupt`. Either way
the ranks leave Horovod, ask the launcher for their new numbers and begin the job anew, from the newest
commit that any of them holds.

What this adds to Horovod's own state class: a newcomer is never waited for in a call that the others do not
make (Horovod leaves out the exchange of the state where it saw a removal, also where a host came meanwhile);
a rendezvous that fails is tried again; hosts found during a change are not forgotten; a wait without end
for enough ranks ends; so does a rank that is stuck while the others wait for it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import horovod.torch as hvd
from horovod.common.elastic import run_fn
from horovod.common.exceptions import HorovodInternalError, HostsUpdatedInterrupt

from horovod_yolo.distributed.horovod_backend import (
    allgather_object,
    broadcast_object,
    initialise,
    leave,
)
from horovod_yolo.distributed.horovod_settings import ENDED_AFTER
from horovod_yolo.distributed.keepalive import connections, watch_connections

log = logging.getLogger(__name__)
T = TypeVar("T")
WORLD_CHANGED: tuple[type[Exception], ...] = (HorovodInternalError, HostsUpdatedInterrupt)
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_UNTIL_SAVED = 3.0  # a change takes about that long where enough ranks are left
_GIVEN, _UNSET = "HOROVOD_CROSS_SIZE", "0"


class RemovedError(RuntimeError):
    """The launcher has no place for this rank any more, or cannot be reached."""


class Kept:
    """What the ranks go on from: the last commit, in the memory of each of them.

    Args:
        wait_s: seconds to wait for enough ranks before giving up.
        on_wait: called with the content when the wait lasts, from another thread: bring it to safety.
        on_give_up: called with the content, from another thread, at the end of the wait: does not return.
        on_stuck: called with the seconds since the others left, from another thread, when this rank does not
            notice it: does not return.
    """

    def __init__(
        self,
        wait_s: float,
        on_wait: Callable[[dict[str, Any]], None],
        on_give_up: Callable[[dict[str, Any] | None], None],
        on_stuck: Callable[[float], None],
    ) -> None:
        self.content: dict[str, Any] | None = None
        self.local: Any = None  # what this rank keeps beside it from world to world, and never sends
        self.lock: Any = None  # of the run, which the first rank of each world takes
        self._order = (-1, -1, -1)  # of the content; the highest is the newest
        self._wait_s = wait_s
        self._on_wait = on_wait
        self._on_give_up = on_give_up
        self._on_stuck = on_stuck
        self._hosts_changed: queue.SimpleQueue[float] = queue.SimpleQueue()

    def keep(self, content: dict[str, Any], order: tuple[int, int, int]) -> None:
        """Remember ``content``, which nobody else changes from now on."""
        self.content, self._order = content, order

    def check_hosts(self) -> None:
        """Begin anew if the launcher has found or lost hosts. *Collective.*

        Raises:
            HostsUpdatedInterrupt: on all ranks.
        """
        if broadcast_object(not self._hosts_changed.empty(), 0, "hosts_changed"):
            raise HostsUpdatedInterrupt(False)

    def agree(self) -> None:
        """Give all ranks the newest content that any of them has. *Collective.*"""
        orders = allgather_object(self._order, "kept.order")
        newest = max(orders)
        if min(orders) == newest:
            return
        owner = orders.index(newest)
        self.content, self._order = broadcast_object((self.content, newest), owner, "kept.content")

    def reset(self) -> None:
        """Leave the old world and join the new one; waits until there is one.

        Raises:
            RemovedError: there is no place for this rank.
        """
        over = threading.Event()
        threading.Thread(target=self._wait, args=(over,), daemon=True).start()
        try:
            leave()
            gc.collect()  # the job's objects hold each other; the next world needs their memory
            while not self._hosts_changed.empty():  # the new world takes these in
                self._hosts_changed.get()
            join(anew=True)
        finally:
            over.set()

    @contextmanager
    def not_left_behind(self) -> Iterator[None]:
        """Inside, this process ends when the others have left and it does not notice for too long.

        Then it is stuck in something of its own, such as a disk that does not answer, and the launcher would
        wait for it without end. Too long is what Horovod's ranks wait for a late one: others may do so.
        """
        over = threading.Event()
        if hvd.size() > 1:  # else no connection is of a rank, and one that ends means nothing
            threading.Thread(target=self._look_for_others, args=(over,), daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _look_for_others(self, over: threading.Event) -> None:
        """Runs beside the job. Horovod closes the connections between ranks when any of them has left."""
        others, left, patience = connections(), 0.0, float(os.environ[ENDED_AFTER])
        while others and patience and not over.wait(SECONDS_BETWEEN_LOOKS):
            # Counted, not read off a clock: when the whole machine was asleep, so was this process.
            left = 0.0 if others & connections() else left + SECONDS_BETWEEN_LOOKS
            if left >= patience:
                self._on_stuck(left)

    def _wait(self, over: threading.Event) -> None:
        """Runs beside `reset`, which blocks in Horovod."""
        if over.wait(min(SECONDS_UNTIL_SAVED, self._wait_s)):
            return
        if self.content is not None:
            self._on_wait(self.content)
        if not over.wait(max(self._wait_s - SECONDS_UNTIL_SAVED, 0)):
            self._on_give_up(self.content)

    # What Horovod's loop asks of a state. `agree` replaces its exchange, because it is not always made.

    def on_hosts_updated(self, timestamp: float, _change: object) -> None:
        """The launcher tells rank 0 that hosts came or went; called by a thread of Horovod's."""
        self._hosts_changed.put(timestamp)

    def sync(self) -> None:
        """Left to `agree`."""

    def restore(self) -> None:
        """Nothing to undo: what was not committed goes with the job's own objects."""

    def on_reset(self) -> None:
        """Nothing to forget: hosts found during the change are taken in at the next commit."""


def run(job: Callable[[], T], kept: Kept) -> T:
    """Run ``job`` until it returns, anew after every change of the world."""

    def attempt(state: Kept) -> T:
        with state.not_left_behind():
            state.agree()
            return job()

    result: T = run_fn(attempt, kept.reset)(kept)
    return result


def join(*, anew: bool = False) -> None:
    """`initialise` that is tried again where the ranks do not find each other in time.

    From then on a host that falls silent is noticed after `keepalive.SECONDS_OF_SILENCE`.

    Args:
        anew: this process was a rank before: the launcher gives it a new number.

    Raises:
        RemovedError: the launcher gives it none.
    """
    while True:
        if anew:
            os.environ[_GIVEN] = _UNSET
        try:
            initialise()
            watch_connections()
            return
        except ValueError:  # Horovod does not say why; but it sets _GIVEN as soon as it has a number
            leave()
            if anew and _environment(_GIVEN) == _UNSET:
                raise RemovedError("the launcher has no place for this rank any more") from None
            log.warning("the ranks did not find each other; once more")
            anew = True


def _environment(name: str) -> str:
    """A variable as C code left it; ``os.environ`` knows nothing of that."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    value: bytes | None = getenv(name.encode())
    return (value or b"").decode()
