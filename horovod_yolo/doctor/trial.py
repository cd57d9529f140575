"""A real job over all hosts, as short as can be: one allreduce, launched as training is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch import network, plan, transport
from horovod_yolo.launch.hostfile import Host
from horovod_yolo.launch.torch_job import TorchJob

MOST_OUTPUT = 1 << 20  # bytes
_PREFIX = re.compile(r"^\[[\d,]+\]<std(?:out|err)>:\s?")
# Of the launcher, after a rank has said what is wrong.
_NOISE = re.compile(
    r"Process \d+ exit with status|^Traceback|^\s|^RuntimeError: Horovod detected|^Process name:|^Exit code:"
)


@dataclass(frozen=True)
class Trial:
    """What the job said. ``error`` is empty where the sum was right on all ranks.

    ``seconds`` is the best of a few allreduces of ``bytes`` bytes.
    """

    ranks: int
    bytes: int = 0
    seconds: float = 0.0
    device: str = ""
    error: str = ""
    output: str = ""  # of a job that failed


def try_allreduce(
    hosts: Sequence[Host], interface: str | None, seconds: float, *, over_torch: bool = False
) -> Trial:
    """A rank on each host, two on a host alone, sum a tensor, launched as training is, or over torch."""
    taking_part = tuple(Host(host.name, 1 if len(hosts) > 1 else 2) for host in hosts)
    ranks = sum(host.slots for host in taking_part)
    try:
        launcher = "torch" if over_torch else transport.chosen(None, elastic=False)[0]
        job = plan.LaunchPlan(
            launcher=launcher,
            tool=plan.tool(launcher),
            hosts=taking_part,
            program=(*plan.module_command("horovod_yolo.doctor.trial_rank"), f"{seconds:.0f}"),
            interface=interface or network.find_interface(taking_part)[0],
            folder=plan.spelled_out(Path.cwd()),
        )
        code, output = (_run_over_torch if over_torch else _run)(job, seconds)
    except UserError as error:
        return Trial(ranks, error=str(error))
    lines = [_PREFIX.sub("", line) for line in output.splitlines()]
    found = next((result for line in lines if (result := _result(line)) is not None), None)
    if found is not None and code == 0:
        return Trial(ranks, **found)
    said = [line.strip() for line in lines if line.strip() and not _NOISE.search(line)]
    why = f"no end within {seconds:.0f} s" if code is None else (said[-1] if said else f"exit code {code}")
    return Trial(ranks, error=why, output="\n".join(lines[-50:]))


def _run_over_torch(job: plan.LaunchPlan, seconds: float) -> tuple[int | None, str]:
    """As `_run`.

    Raises:
        UserError: the job cannot start.
    """
    environment = {"OMP_NUM_THREADS": "1", **plan.environment(os.environ)}
    output, expired = bytearray(), threading.Event()

    def keep(line: bytes, is_error: bool) -> None:
        output.extend(line[: MOST_OUTPUT - len(output)])

    with (
        TorchJob(job.hosts, job.program, environment, interface=job.interface, write=keep) as started,
        ExitStack() as at_the_end,
    ):

        def end() -> None:
            expired.set()
            started.kill()

        timer = threading.Timer(seconds, end)
        at_the_end.callback(timer.cancel)
        timer.start()
        code = started.wait()
    return None if expired.is_set() else code, output.decode(errors="replace")


def _run(job: plan.LaunchPlan, seconds: float) -> tuple[int | None, str]:
    """(exit code, output) of a job; the code is None where it had to be ended."""
    environment = {"OMP_NUM_THREADS": "1", **plan.environment(os.environ)}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            job.argv(),
            cwd="/" if job.folder else None,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # upon which horovodrun ends its ranks
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return code, output.read(MOST_OUTPUT).decode(errors="replace")


def _result(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"seconds"'):
        return None
    found: dict[str, Any] = json.loads(line)
    return found
