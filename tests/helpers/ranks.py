"""Real ranks for tests: the launchers users have, each process in a group of its own, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-bind-to", "none")
LAUNCHERS = {
    "gloo": ("horovodrun", "--gloo"),
    "mpi": ("horovodrun", "--mpi", "--mpi-args=--oversubscribe"),
    "mpirun": MPIRUN,
    "recovering": (*MPIRUN, "--enable-recovery"),
    "torchrun": ("torchrun", "--standalone", "--no-python"),
}


_folders: dict[int, str] = {}  # the temporary folder of each job that is not finished, by its launcher


@dataclass(frozen=True)
class Finished:
    """What a job left: its exit code and everything it printed."""

    code: int
    output: str


def command(arguments: Sequence[str | Path], ranks: int, launcher: str = "gloo") -> list[str]:
    """The command line that starts a Python program on several ranks of this host."""
    python = [sys.executable, *map(str, arguments)]
    if ranks == 1 and launcher == "plain":
        return python
    head = [str(BIN / LAUNCHERS[launcher][0]), *LAUNCHERS[launcher][1:]]
    if launcher == "torchrun":
        return [*head, "--nproc-per-node", str(ranks), *python]
    hosts = (
        [] if LAUNCHERS[launcher][0] == "mpirun" else ["-H", f"localhost:{ranks}"]
    )  # Gloo fills all slots it is given
    return [*head, "-np", str(ranks), *hosts, *python]


def start(
    arguments: Sequence[str | Path], ranks: int, launcher: str = "gloo", **variables: str
) -> subprocess.Popen[str]:
    """Start a job in a session of its own, one thread a rank, on the CPU also where there are GPUs.

    Its temporary folder ends with it: a process that is killed leaves its own temporary files there.
    """
    folder = tempfile.mkdtemp(prefix="job-")
    place = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "TMPDIR": folder,
    }
    environment = {**os.environ, **place, **variables}
    job = subprocess.Popen(
        command(arguments, ranks, launcher),
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    _folders[job.pid] = folder
    return job


def finish(job: subprocess.Popen[str], timeout: float) -> Finished:
    """Wait for a job; one that hangs is killed with all its processes and fails the test."""
    try:
        output, _ = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        kill(job)
        if job.stdout is not None:
            job.stdout.close()
        printed = error.stdout or b""
        text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
        raise AssertionError(f"the job did not end within {timeout} s; it printed:\n{text}") from None
    finally:
        if folder := _folders.pop(job.pid, None):
            shutil.rmtree(folder, ignore_errors=True)
    return Finished(job.returncode, output)


def run(
    arguments: Sequence[str | Path],
    ranks: int,
    launcher: str = "gloo",
    timeout: float = 300,
    **variables: str,
) -> Finished:
    """Start a job and wait for it."""
    return finish(start(arguments, ranks, launcher, **variables), timeout)


def processes(job: subprocess.Popen[str]) -> list[int]:
    """The job's processes, launcher first: those whose chain of parents leads to it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # ended meanwhile
        parents[int(stat.parent.name)] = int(fields[1])
    found = [job.pid]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def rank_processes(job: subprocess.Popen[str]) -> list[int]:
    """The job's processes that run ``train.py`` itself."""
    found = []
    for pid in processes(job):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            len(words) > 1
            and Path(words[0].decode()).name.startswith("python")
            and words[1].endswith(b"train.py")
        ):
            found.append(pid)
    return found


def wait_until_gone(pids: Sequence[int], seconds: float = 10) -> None:
    """Fail where a process is still there after so long. Data workers end just after their trainer."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def kill_ranks(job: subprocess.Popen[str]) -> Finished:
    """SIGKILL the ranks, and wait for their launcher."""
    for pid in rank_processes(job):
        os.kill(pid, signal.SIGKILL)
    return finish(job, 60)


def kill(job: subprocess.Popen[str]) -> None:
    """SIGKILL the whole job."""
    for pid in reversed(processes(job)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    job.wait()


def results(run_folder: Path) -> dict[str, object]:
    """``results.json`` of a run."""
    loaded: dict[str, object] = json.loads((run_folder / "results.json").read_text())
    return loaded
