"""How a rank ends: its exit code, its words, and what must not wait.

Exit codes: 0 done, 2 the user's mistake (one line, no traceback), 1 a fault of ours, 3 stopped on request
with a checkpoint written: put me back into the queue.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.util import get_temp_dir
from typing import TYPE_CHECKING, NoReturn

from horovod_yolo.core.errors import (
    DataWorkerError,
    FaultyRankError,
    MemoryShortError,
    NonFiniteError,
    Request,
    StoppedError,
    TakenError,
    UnmetError,
    UnwrittenError,
    UserError,
)
from horovod_yolo.core.memory import shortage
from horovod_yolo.core.text import plain
from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.process import logs, restarts

if TYPE_CHECKING:
    from horovod_yolo.distributed.communicator import Communicator

log = logging.getLogger("horovod_yolo")
DONE, FAULT, MISTAKE, STOPPED = 0, 1, 2, 3
# All ranks raise these together.
AGREED = (UserError, NonFiniteError, MemoryShortError, FaultyRankError, UnwrittenError, StoppedError)
SECONDS_OF_THE_FIRST = 3.0  # for a launcher to see that a rank has left
_ending = threading.Lock()


def end_of(error: Exception) -> tuple[int, str]:
    """Exit code and words for how all ranks ended."""
    if isinstance(error, StoppedError):
        return STOPPED if error.saved else FAULT, f"stopped on request {error}"
    if isinstance(error, (NonFiniteError, MemoryShortError, FaultyRankError)):
        return FAULT, f"training stopped: {error}"
    return MISTAKE if isinstance(error, UserError) else FAULT, f"error: {error}"


def say_end(comm: Communicator, error: Exception) -> int:
    """Let rank 0 say how all ranks ended; the exit code."""
    code, words = end_of(error)
    if comm.rank == 0:
        _say(code, words)
    mark_end(code, words, error.request if isinstance(error, StoppedError) else "certain")
    return code


def _say(code: int, words: str) -> None:
    print(plain(words), file=sys.stdout if code == STOPPED else sys.stderr, flush=True)


def mark_end(code: int, words: str, request: Request = "certain", *, alone: bool = False) -> None:
    """Where the launcher starts ranks anew, let those of this host end like this one.

    Args:
        code: exit code; only those that tell the user something are kept.
        words: what was said.
        request: upon which it ends. Where the launcher may have asked, ranks that it starts without counting
            it as a failure go on.
        alone: whether this rank has said so, and not all of them together.
    """
    started = launcher()
    if code not in (MISTAKE, STOPPED) or not started.for_torch or request == "elsewhere":
        return
    above = -1 if request == "certain" else started.restarts
    try:
        restarts.leave_end(restarts.End(code, words, alone, above))
    except OSError as error:
        log.warning("torchrun may start the ranks anew: %s", error)


def end_as_before() -> None:
    """End this process where earlier ranks of the same torchrun have ended for good."""
    started = launcher()
    end = restarts.earlier_end(started.restarts) if started.for_torch else None
    if end is None:
        return
    if not started.local_rank and (end.alone or started.rank == 0):
        _say(end.code, end.words)
    end_at_once(end.code)


def leave(code: int) -> NoReturn:
    """End this process.

    Ranks that failed together leave at once: a slow end of the interpreter on one would let horovodrun see
    the other's end first and kill it, and its exit code would be lost.
    """
    if code != DONE and not isinstance(launcher(), Alone):
        end_at_once(code)
    sys.exit(code)


def end_at_once(code: int) -> NoReturn:
    """End this process, from whatever thread, without what the interpreter does at its end."""
    _ending.acquire()  # for good: while one thread ends it, another may see that the other ranks have left
    with suppress(OSError):  # into a pipe that nobody reads; who holds the lock must come to the end
        sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.flush()
    with suppress(OSError):
        shutil.rmtree(get_temp_dir())  # with the address of the data workers' fork server
    os._exit(code)


def leave_on_request(words: str, *, certain: bool = True) -> None:
    """End this process, from whatever thread: nothing is lost, and the launcher ends the other ranks.

    Args:
        words: when it leaves, and what is kept.
        certain: the request is not only a launcher's, which may be about to start ranks anew.
    """
    words = f"{logs.rank_here(launcher().rank)} stopped on request {words}"
    print(words)
    if certain:
        mark_end(STOPPED, words, alone=True)
    end_at_once(STOPPED)


def leave_with_group() -> NoReturn:
    """End this process, from whatever thread: another rank of its group in a search is gone."""
    who = logs.rank_here(launcher().rank)
    print(f"{who}: a rank of its group is gone: the group leaves, others repeat its trial", file=sys.stderr)
    end_at_once(FAULT)


def leave_alone(comm: Communicator, error: Exception) -> NoReturn:
    """End this process at once: an orderly shutdown would wait for ranks that wait for this one.

    Where another rank's end is the cause, that one's words are what matters: this one has but a line.
    """
    who = logs.rank_here(comm.rank)
    if isinstance(error, comm.lost_errors):
        print(f"{who}: another rank left or does not answer ({_first_line(error)})", file=sys.stderr)
    elif isinstance(error, (DataWorkerError, TakenError, UserError)):
        complain(f"{who}: {error}")
        if not isinstance(error, DataWorkerError):
            mark_end(MISTAKE, f"error: {who}: {error}", alone=True)
    else:
        print(f"{who} failed: {advice(error) or repr(error)}", file=sys.stderr)
        traceback.print_exception(error)
    log.debug("%s failed", who, exc_info=error)  # for the file of this rank
    end_at_once(MISTAKE if isinstance(error, (UserError, TakenError)) else FAULT)


def advice(error: Exception) -> str | None:
    """What to lower where memory was short."""
    words = shortage(error)
    if words is None:
        return None
    which, _, said = words.partition(" (")
    lower = "--batch-size, --micro-batch or --imgsz"
    if which.startswith("this host"):
        lower = "--batch-size, --micro-batch, --imgsz or --workers, or leave out --cache ram"
    return f"{which}: lower {lower} ({said}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def refused(error: UserError, place: int) -> int:
    """Say what keeps this process out of its job, before it can talk to other ranks; the exit code.

    A launcher ends the others when the first rank leaves, so none leaves without a word. The first speaks at
    once and the others later: by then they usually are gone, and their line is not needed.

    Args:
        error: the mistake, which other ranks meet too.
        place: of this rank among those that meet it.
    """
    if not isinstance(error, UnmetError):
        mark_end(MISTAKE, f"error: {error}", alone=True)
    if place:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # of the launcher: no request that would need an answer
        time.sleep(SECONDS_OF_THE_FIRST)
    complain(str(error))
    return MISTAKE


def complain(text: str) -> None:
    """Print a mistake of the user's."""
    print(f"error: {plain(text)}", file=sys.stderr, flush=True)
