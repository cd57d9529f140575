"""A guard beside each rank: it ends a rank that hangs or that its launcher has lost.

Horovod never drops a process that is there and does nothing (SIGSTOP, a machine that swaps, code that never
gives the interpreter back), and the ranks of a host that was cut off and comes back would meddle with those
that took their place. So a thread of the rank sends a beat every second, and a process beside it, which
imports nothing but the standard library, ends the rank with SIGKILL when

- no beat has come for some time: the launcher then drops the rank, or ends a job that is not elastic;
- nobody reads the rank's output any more: the launcher, or its ssh session to this host, is gone;
- the launcher's address cannot be reached for some time: this host is cut off;
- nobody listens there any more, with a launcher that listens until its ranks have ended.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

log = logging.getLogger(__name__)
SECONDS_BETWEEN_BEATS = 1.0
SECONDS_WITHOUT_BEAT = 10.0
SECONDS_TO_LEAVE = 60.0  # without a beat: the interpreter stops its threads first, and then tidies up
LEAVING = "leaving"
SECONDS_BETWEEN_CALLS = 4.0  # to the launcher
CALLS_WITHOUT_ANSWER = 4
VARIABLE = "HOROVOD_YOLO_HEARTBEAT_SECONDS"


class Pulse:
    """The beats of this process, sent by a thread; ``rank`` may change between them."""

    def __init__(self, rank: int, pipe: int) -> None:
        self.rank = rank
        self._pipe = pipe
        with suppress(OSError):  # the guard is gone: the thread says so
            self._send()  # at once, so that a rank that hangs before its thread runs has a name
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        atexit.register(self._leave)

    def _send(self) -> None:
        os.write(self._pipe, f"{self.rank}\n".encode())

    def _leave(self) -> None:
        """On a busy machine the end may take longer than a rank at work may be silent."""
        with suppress(OSError):  # the guard is gone
            os.write(self._pipe, f"{LEAVING}\n".encode())

    def _beat(self) -> None:
        while True:
            try:
                self._send()
            except BlockingIOError:
                log.warning("the guard of this rank does not listen")
            except BrokenPipeError:
                log.warning("the guard of this rank is gone; nobody would notice if it hung")
                return
            time.sleep(SECONDS_BETWEEN_BEATS)


def start_guard(rank: int, launcher: tuple[str, int] | None = None, *, listens: bool = False) -> Pulse:
    """Start the guard of this process, and its pulse.

    Args:
        rank: of this process, when it starts.
        launcher: address of its launcher, where that can be called.
        listens: whether the launcher listens there as long as it is alive.

    Raises:
        UserError: the variable that sets its patience holds no number.
    """
    from horovod_yolo.process.environment import number  # not for the guard, which is this file alone

    seconds = number(VARIABLE, SECONDS_WITHOUT_BEAT)
    read, write = os.pipe()
    told = (os.getpid(), read, seconds, *(launcher or ("", 0)), int(listens))
    guard = [sys.executable, "-I", "-S", __file__, *map(str, told)]
    # A session of its own: what is meant for the rank, such as Ctrl-C, must not end its guard first.
    subprocess.Popen(guard, pass_fds=(read,), stdin=subprocess.DEVNULL, start_new_session=True)
    os.close(read)
    os.set_blocking(write, False)
    return Pulse(rank, write)


class Guard:
    """Watches one process; `main` makes it in a process of its own.

    Args:
        pid: of the rank, the guard's parent.
        pipe: where its beats arrive.
        seconds: without a beat until it counts as hung; 0: never.
        launcher: address to call now and then; an empty host for none.
        listens: whether a launcher that refuses a call is gone.
    """

    def __init__(
        self, pid: int, pipe: int, seconds: float, launcher: tuple[str, int], listens: bool = False
    ) -> None:
        self._pid = pid
        self._pipe = pipe
        self._seconds = seconds
        self._rank = "?"
        self._launcher = launcher
        self._listens = listens
        self._unanswered = self._refused = 0
        self._over = threading.Event()

    def watch(self) -> None:
        """Return when the rank has ended, by itself or by the guard."""
        if self._launcher[0]:
            threading.Thread(target=self._call, daemon=True).start()
        try:
            self._watch()
        finally:
            self._over.set()

    def _watch(self) -> None:
        silent = 0.0
        while os.getppid() == self._pid:
            ready, _, _ = select.select([self._pipe], [], [], SECONDS_BETWEEN_BEATS)
            beats = os.read(self._pipe, 4096) if ready else b""
            if ready and not beats:
                return
            self._hear(beats.decode().split())
            # Counted, not read off a clock: when the whole machine was asleep, so was this loop.
            silent = 0.0 if ready else silent + SECONDS_BETWEEN_BEATS
            reason = self._reason(silent)
            if reason:
                self._end(reason)
                return

    def _hear(self, words: list[str]) -> None:
        if LEAVING in words and self._seconds > 0:
            self._seconds = max(self._seconds, SECONDS_TO_LEAVE)
        self._rank = next((word for word in reversed(words) if word != LEAVING), self._rank)

    def _reason(self, silent: float) -> str:
        if 0 < self._seconds <= silent:
            return f"has not answered for {silent:.0f} s: it hangs or was stopped"
        if _is_closed(1):
            return "has lost its launcher: nobody reads its output"
        if self._unanswered >= CALLS_WITHOUT_ANSWER:
            return f"cannot reach its launcher at {self._launcher[0]}: the host is cut off"
        if self._listens and self._refused >= CALLS_WITHOUT_ANSWER:
            return f"has lost its launcher: nobody listens at {self._launcher[0]}:{self._launcher[1]}"
        return ""

    def _end(self, reason: str) -> None:
        try:
            os.write(2, f"rank {self._rank} on {socket.gethostname()} {reason}. It is ended\n".encode())
        except OSError:
            self._unanswered = 0  # nobody is there to be told; the reason stands
        os.kill(self._pid, signal.SIGKILL)

    def _call(self) -> None:
        while not self._over.is_set():
            try:
                socket.create_connection(self._launcher, timeout=SECONDS_BETWEEN_CALLS).close()
                self._unanswered = self._refused = 0
            except ConnectionRefusedError:
                self._unanswered = 0  # the host is there; a launcher that ended mostly closes the output
                self._refused += 1
            except OSError:
                self._unanswered += 1
            self._over.wait(SECONDS_BETWEEN_CALLS)


def _is_closed(descriptor: int) -> bool:
    """Whether the other end of a pipe, socket or terminal is gone. A file never is."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def main(argv: list[str]) -> None:
    """Be the guard: process, pipe, seconds, launcher's host and port, whether it always listens there."""
    # A terminal's and Slurm's go to all processes of a session or step.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pid, pipe, seconds, host, port, listens = argv
    Guard(int(pid), int(pipe), float(seconds), (host, int(port)), listens == "1").watch()


if __name__ == "__main__":
    main(sys.argv[1:])
