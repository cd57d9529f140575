"""Watch over a launcher: requests to stop reach the ranks, and the ranks' exit code comes back.

horovodrun over Gloo kills its ranks when it is signalled, and exits with 1 whatever they exited with; mpirun
gives them a second. So the launcher gets a session of its own, where no signal meant for this process reaches
it, and the ranks look for a file, which is enough for one of them to see.
"""

from __future__ import annotations

import ctypes
import logging
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from horovod_yolo.launch.network import is_here
from horovod_yolo.launch.plan import LaunchPlan
from horovod_yolo.signals import SIGNALS, STOP_FILE

log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_CODE_OF_A_RANK = re.compile(rb"Process \d+ exit with status code (\d+)\.")  # horovodrun's words, over Gloo
_TOLD_BY_RANKS = (2, 3)


def run(plan: LaunchPlan, environ: Mapping[str, str]) -> int:
    """Run a job that trains to its end, and pass requests to stop on to its ranks.

    The first SIGTERM, SIGINT or SIGUSR1 asks them to stop; a second SIGINT ends the job at once.

    Args:
        plan: the job.
        environ: the launcher's environment.

    Returns:
        The launcher's exit code; over Gloo that of the first rank to leave, if it is the user's mistake or
        a stop on request.
    """
    over_gloo = plan.launcher == "horovodrun-gloo"
    elsewhere = "" if any(is_here(host.name) for host in plan.hosts) else plan.hosts[0].name
    plan = replace(plan, names=(*plan.names, STOP_FILE))
    with tempfile.TemporaryDirectory(prefix="horovod_yolo-") as folder:
        stop_file = Path(folder) / "stop"
        job = subprocess.Popen(
            plan.argv(),
            env={**environ, STOP_FILE: str(stop_file)},
            stdout=subprocess.PIPE if over_gloo else None,
            start_new_session=True,
            preexec_fn=_end_with_this_process,
        )
        with _passing_on(job, stop_file, elsewhere):
            told = _echo(job) if over_gloo else None
            code = job.wait()
    return told if told in _TOLD_BY_RANKS else code if code >= 0 else 128 - code


def _end_with_this_process() -> None:
    """In the launcher: SIGTERM when this process is gone, however that happened."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _echo(job: subprocess.Popen[bytes]) -> int | None:
    """Print what the job prints; the exit code that horovodrun names first."""
    assert job.stdout is not None
    told = None
    for line in job.stdout:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        found = _CODE_OF_A_RANK.match(line)
        if found and told is None:
            told = int(found[1])
    return told


@contextmanager
def _passing_on(job: subprocess.Popen[bytes], stop_file: Path, elsewhere: str) -> Iterator[None]:
    """Inside, signals to this process are requests to the job's ranks."""
    interrupts = 0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            job.terminate()
        elif not stop_file.exists():
            stop_file.touch()
            log.warning("asked to stop: waiting for the step in hand and a checkpoint")
            if elsewhere:
                _touch_at(elsewhere, stop_file)

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if job.poll() is None:
            job.kill()


def _touch_at(host: str, file: Path) -> None:
    """Make the file on another host, without waiting for it."""
    make = f"mkdir -p {shlex.quote(str(file.parent))} && touch {shlex.quote(str(file))}"
    subprocess.Popen(["ssh", "-o", "BatchMode=yes", host, make], stdin=subprocess.DEVNULL)
