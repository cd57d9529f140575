"""Watch over a launcher: requests to stop reach the ranks, and the ranks' exit code comes back.

horovodrun over Gloo kills its ranks when it is signalled, and exits with 1 whatever they exited with; mpirun
gives them a second. So the launcher gets a session of its own, where no signal meant for this process reaches
it, and the ranks look for a file, which is enough for one of them to see: `StopFiles`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TextIO

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch.hostfile import read_hostfile
from horovod_yolo.launch.network import is_here
from horovod_yolo.launch.plan import LaunchPlan
from horovod_yolo.launch.stop_files import StopFiles
from horovod_yolo.launch.torch_job import TorchJob
from horovod_yolo.process.output import outlive_lost_output
from horovod_yolo.process.signals import SIGNALS, STOP_FILE, not_ignored

log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_CODE_OF_A_RANK = re.compile(rb"Process \d+ exit with status code (\d+)\.")  # horovodrun's words, over Gloo
_TOLD_BY_RANKS = (2, 3)
_KILLED = 128  # and the number of the signal


def run(plan: LaunchPlan, environ: Mapping[str, str]) -> int:
    """Run a job that trains or predicts to its end, and pass requests to stop on to its ranks.

    The first SIGTERM, SIGINT, SIGUSR1 or SIGHUP asks them to stop; a second SIGINT ends the job at once.

    Args:
        plan: the job.
        environ: the launcher's environment.

    Returns:
        The launcher's exit code; over Gloo that of the ranks, where they end with the user's mistake or on
        request.
    """
    over_gloo = plan.launcher == "horovodrun-gloo"
    plan = replace(plan, names=(*plan.names, STOP_FILE))
    outlive_lost_output()
    with StopFiles(lambda: _others_with_ranks(plan), one_is_enough=plan.elastic is None) as stop_files:
        job = subprocess.Popen(
            plan.argv(),
            env={**environ, STOP_FILE: str(stop_files.file)},
            stdin=subprocess.DEVNULL,  # mpirun would swallow what is meant for the script around this
            stdout=subprocess.PIPE,  # which stays open when a terminal hangs up
            stderr=subprocess.STDOUT if _hangs_up(sys.stderr) else None,
            start_new_session=True,
            preexec_fn=_end_with_this_process,
        )
        with _passing_on(job, stop_files):
            told = _echo(job)
            code = job.wait()
    told = told if over_gloo else []
    return _exit_code(code if code >= 0 else 128 - code, told, elastic=plan.elastic is not None)


def run_over_torch(plan: LaunchPlan, environ: Mapping[str, str]) -> int:
    """Run a job whose ranks talk through torch; signals are as in `run`.

    Returns:
        The ranks' exit code where that is 0, 2 or 3, else 1.
    """
    outlive_lost_output()
    with (
        TorchJob(plan.hosts, plan.program, environ, interface=plan.interface, restarts=plan.restarts) as job,
        _heard(job.stop, job.kill),
    ):
        return job.wait()


def _exit_code(launchers: int, told: Sequence[int], *, elastic: bool) -> int:
    """The job's exit code.

    Ranks that fail together leave one after the other, and the first tells why. An elastic job outlives ranks
    that fail: where it ends well their codes do not count, and where not, the last to leave tells why. There
    128 and more are passed over: a rank that was killed, or ssh (255) that lost its host, and which may be
    noticed later than the end of the others.
    """
    if not elastic:
        decisive = told[:1]
    elif launchers != 0:
        decisive = [code for code in told if code < _KILLED][-1:]
    else:
        decisive = []
    return next((code for code in decisive if code in _TOLD_BY_RANKS), launchers)


def _others_with_ranks(plan: LaunchPlan) -> list[str]:
    """Hosts beside this one where a request to stop has to be made, so that a rank sees it.

    One rank that sees it is enough; but where too few of an elastic job are left, each waits for itself.
    """
    names = [host.name for host in plan.hosts]
    if plan.elastic is None:
        return [] if any(map(is_here, names)) else names
    if plan.elastic.hostfile is not None:
        try:  # ranks may still be on hosts that were struck out
            names += [host.name for host in read_hostfile(plan.elastic.hostfile)]
        except UserError as error:
            log.warning("only hosts that were there at the start are asked to stop: %s", error)
    return [name for name in dict.fromkeys(names) if not is_here(name)]


def _hangs_up(stream: TextIO) -> bool:
    """Whether it is a terminal, upon whose end a launcher that writes to it would die."""
    return stream.isatty()


def _end_with_this_process() -> None:
    """In the launcher: SIGTERM when this process is gone, however that happened."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_parent(parent: int) -> None:
    """SIGTERM to this process when its parent is gone, however that happens; the parent's number is known."""
    _end_with_this_process()
    if os.getppid() != parent:  # it was quicker
        os.kill(os.getpid(), signal.SIGTERM)


def _echo(job: subprocess.Popen[bytes]) -> list[int]:
    """Print what the job prints; the exit codes that horovodrun names, in its order."""
    assert job.stdout is not None
    told = []
    for line in job.stdout:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        if found := _CODE_OF_A_RANK.match(line):
            told.append(int(found[1]))
    return told


@contextmanager
def _passing_on(job: subprocess.Popen[bytes], stop_files: StopFiles) -> Iterator[None]:
    """Inside, signals to this process are requests to the job's ranks."""
    try:
        with _heard(stop_files.make, job.terminate):
            yield
    finally:
        if job.poll() is None:
            job.kill()


@contextmanager
def _heard(ask: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Inside, the first signal to this process makes it ask the ranks to stop, a second SIGINT end them."""
    asked, interrupts = False, 0

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal asked, interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            end()
        elif not asked:
            asked = True
            log.warning("asked to stop: waiting for the step or the images in hand")
            ask()

    before = {number: signal.signal(number, hear) for number in not_ignored(SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
