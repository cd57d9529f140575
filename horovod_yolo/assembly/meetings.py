"""Work that takes a rank long, as reading a slow disk does, while all ranks keep in touch.

A rank that does not come to a collective call for ten minutes ends the job (see `horovod_settings.DEFAULTS`).
So the work runs in a thread of its own, and the ranks meet every few seconds until all have done theirs. One
that gets nowhere for those ten minutes still ends the job, with a word about who and where.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.agreement import raise_together
from horovod_yolo.distributed.communicator import Communicator

SECONDS_BETWEEN_MEETINGS = 5.0
SECONDS_WITHOUT_PROGRESS = 600.0
MOST_NAMED = 3
T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Callable[[int], None]], T]


class Background(Generic[T]):
    """A function that runs in a thread of its own; it is given `advance`, to be called as it gets on.

    Attributes:
        done: how far it has got, in units of its own.
    """

    def __init__(self, work: Work[T]) -> None:
        self.done = 0
        self._work = work
        self._moved = time.monotonic()
        self._value: T | None = None
        self._error: Exception | None = None
        self._over = threading.Event()
        # A daemon: a thread that waits for a disk that is gone must not keep the process.
        threading.Thread(target=self._run, name="background", daemon=True).start()

    def _run(self) -> None:
        try:
            self._value = self._work(self.advance)
        except Exception as error:  # noqa: BLE001  # raised again in the main thread
            self._error = error
        self._over.set()

    def advance(self, units: int = 1) -> None:
        """Note that the work gets on."""
        self.done += units
        self._moved = time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Whether it is over, within so many seconds.

        Raises:
            Exception: what the function raised, unless it is a `UserError`: that is for `result`.
        """
        over = self._over.wait(seconds)
        if over and self._error is not None and not isinstance(self._error, UserError):
            raise self._error
        return over

    @property
    def is_stuck(self) -> bool:
        """Whether it has got nowhere for too long."""
        return not self._over.is_set() and time.monotonic() - self._moved > SECONDS_WITHOUT_PROGRESS

    def result(self) -> T:
        """What the function returned, or raised, when it is over."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set before the event


def meetings(comm: Communicator, work: Background[T], report: Callable[[], R]) -> Iterator[list[R]]:
    """What each rank reports, every few seconds until the work of all is over. *Collective.*

    A rank's last report is made after the end of its work.

    Raises:
        UserError: on all ranks, where a rank gets nowhere.
    """
    while True:
        over = work.wait(SECONDS_BETWEEN_MEETINGS)
        stuck = f"rank {comm.rank} on {socket.gethostname()}" if work.is_stuck else ""
        said = comm.allgather_object((over, stuck, report()))
        if where := [stuck for _, stuck, _ in said if stuck]:
            raise UserError(
                f"no file could be read for {SECONDS_WITHOUT_PROGRESS:.0f} s",
                where=", ".join(where[:3]),
                fix="does the data set's file system still answer there?",
            )
        yield [said_by for _, _, said_by in said]
        if all(over for over, _, _ in said):
            return


def _say_nothing(_done: int) -> None:
    pass


def meanwhile(comm: Communicator, work: Work[T], show: Callable[[int], None] = _say_nothing) -> T:
    """Do something that may take long. *Collective*, but for ``work`` itself.

    Args:
        comm: of the ranks.
        work: is given what it calls with the units that it has done.
        show: called every few seconds with the units that all ranks have done.

    Raises:
        UserError: this rank's own; the others do not know of it.
    """
    background = Background(work)
    for done in meetings(comm, background, lambda: background.done):
        show(sum(done))
    return background.result()


def together_meanwhile(comm: Communicator, work: Work[T], show: Callable[[int], None] = _say_nothing) -> T:
    """`meanwhile`, but what one rank raises, all raise. *Collective*, but for ``work`` itself.

    Raises:
        UserError: on all ranks, where any rank's work does.
    """
    try:
        value, problem = meanwhile(comm, work, show), None
    except UserError as error:
        value, problem = None, str(error)
    raise_together(comm, problem)
    return value  # type: ignore[return-value]  # it is None for an error only


def on_keepers(comm: Communicator, look: Work[T]) -> T | None:
    """What one rank of each host finds there; None on the others. *Collective*, but for ``look`` itself.

    Raises:
        UserError: on all ranks, where any host's does; it names the hosts where others have no such mistake.
    """
    is_keeper = comm.local_rank == 0
    try:
        found, problem = meanwhile(comm, lambda advance: look(advance) if is_keeper else None), ""
    except UserError as error:
        found, problem = None, str(error)
    problems = comm.allgather_object((is_keeper, socket.gethostname(), problem))
    bad = [(host, text) for _, host, text in problems if text]
    if bad:
        some = len(bad) < sum(1 for is_keeper, _, _ in problems if is_keeper)
        where = f" (on {', '.join(host for host, _ in bad[:MOST_NAMED])})" if some else ""
        raise UserError(bad[0][1] + where)
    return found
