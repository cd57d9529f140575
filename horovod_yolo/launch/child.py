"""A job started by a call from Python: ``horovod-yolo launch`` as a child of this process.

It is a new program, no copy of this one: nothing of a script or notebook is run a second time. What the job
prints is printed here, line by line, by `sys.stdout` and `sys.stderr`: in a notebook those are the cell's.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, TextIO

from horovod_yolo.launch.plan import module_command
from horovod_yolo.process.signals import SIGNALS, not_ignored
from horovod_yolo.process.told import Told

STARTER = "horovod_yolo.cli.started"
_MISTAKE = b"error: "
_OF_HOROVODRUN = re.compile(rb"^\[[\d,]+\]<std(out|err)>:")  # before each line of one of several ranks


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        code: exit code of the launcher.
        told: what rank 0 handed over; None for nothing.
        mistake: the last line that told of the user's mistake, without what it begins with.
        interrupts: how often this process was interrupted (SIGINT) meanwhile.
    """

    code: int
    told: Any
    mistake: str
    interrupts: int


class Job:
    """A job from its start to its end.

    Args:
        words: of ``horovod-yolo launch``.
        first: a line to print before all.
    """

    def __init__(self, words: Sequence[str], first: str) -> None:
        self._words = words
        self._first = first
        self._told = Told()
        self._mistake = b""
        self._interrupts = 0

    def run(self) -> Ended:
        """Wait for it.

        Called in the main thread it passes signals on, of which the first asks the ranks to stop, and a
        second SIGINT ends the job at once.
        """
        _print(f"{self._first}\n".encode(), sys.stdout)
        job = subprocess.Popen(
            [*module_command(STARTER), str(os.getpid()), *self._words],
            env=with_this_package(os.environ.copy()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at a terminal comes once: from here
        )
        assert job.stdout is not None and job.stderr is not None
        beside = threading.Thread(target=self._pass_errors_on, args=(job.stderr,), name="errors of ranks")
        beside.start()
        try:
            with self._passing_signals_on(job):
                for line in job.stdout:
                    if not self._told.heard(line):
                        _print(_bare(line), sys.stdout)
        except BaseException:  # interrupted in another way than by a signal, or nothing can be printed
            job.terminate()
            deque(job.stdout, maxlen=0)
            raise
        finally:
            code = job.wait()
            beside.join()
            job.stdout.close()
            job.stderr.close()
        mistake = self._mistake.removeprefix(_MISTAKE).decode(errors="replace").strip()
        return Ended(code, self._told.value, mistake, self._interrupts)

    def _pass_errors_on(self, lines: IO[bytes]) -> None:
        for line in lines:
            if (words := _bare(line)).startswith(_MISTAKE):
                self._mistake = words
            else:
                _print(words, sys.stderr)

    @contextmanager
    def _passing_signals_on(self, job: subprocess.Popen[bytes]) -> Iterator[None]:
        def pass_on(number: int, frame: FrameType | None) -> None:
            self._interrupts += number == signal.SIGINT
            job.send_signal(number)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, pass_on) for number in not_ignored(SIGNALS)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def with_this_package(environ: dict[str, str]) -> dict[str, str]:
    """An environment in which Python finds the package that runs here, wherever that lies."""
    folder = str(Path(__file__).parents[2])
    others = [one for one in environ.get("PYTHONPATH", "").split(":") if one and one != folder]
    return {**environ, "PYTHONPATH": ":".join([folder, *others])}


def _bare(line: bytes) -> bytes:
    """What a rank wrote. Who it is, all but rank 0 say themselves."""
    return _OF_HOROVODRUN.sub(b"", line)


def _print(line: bytes, stream: TextIO) -> None:
    stream.write(line.decode(errors="replace"))
    stream.flush()
