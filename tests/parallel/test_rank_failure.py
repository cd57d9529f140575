"""A rank that fails ends the job within seconds; its words name rank, host and cause; no process stays."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.helpers import ranks

SECONDS = 20  # from the fault to the end of the job; the launchers give ranks five to end

FAILED = f"rank 1 on {socket.gethostname()} failed: "
STALL_SECONDS = 6
STALL = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "2", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": str(STALL_SECONDS)}
# Training with a fault on one rank in its second step, and the moment it happened.
FAULTY = """
import os, signal, sys, time
from pathlib import Path
import torch
from horovod_yolo.cli import train_main
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.distributed.sync_batchnorm import SyncBatchNorm2d
from horovod_yolo.training.step import Stepper
from horovod_yolo.assembly.ending import leave

folder, fault = Path(sys.argv[1]), sys.argv[2]
faults = {
    "exception": lambda: [][1],
    "memory": lambda: torch.empty(1 << 50),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "killed in batch norm": lambda: setattr(SyncBatchNorm2d, "forward", forward),
    "late": lambda: time.sleep(600),
}
whole, steps = Stepper.step, []
normalise, layers = SyncBatchNorm2d.forward, []

def forward(*arguments):
    layers.append(None)
    if len(layers) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return normalise(*arguments)

def step(*arguments):
    steps.append(None)
    if len(steps) == 2 and launcher().rank == 1:
        (folder / "moment").write_text(str(time.time()))
        faults[fault]()
    return whole(*arguments)

Stepper.step = step
if __name__ == "__main__":
    leave(train_main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("launcher", "fault", "words"),
    [
        ("gloo", "memory", FAILED + "this host is out of memory: lower --batch-size"),
        ("gloo", "killed in batch norm", "Process 1 exit with status code 137"),
        pytest.param("mpirun", "killed in batch norm", "exited on signal 9", marks=pytest.mark.slow),
        ("mpirun", "exception", FAILED + "IndexError\\('list index out of range'\\)"),
        ("torchrun", "killed", "rank 0 on .*: another rank left or does not answer"),
        pytest.param("torchrun", "exception", FAILED + "IndexError", marks=pytest.mark.slow),
        pytest.param("mpi", "memory", FAILED + "this host is out of memory", marks=pytest.mark.slow),
        pytest.param("gloo", "late", "Missing ranks:\\n.*1: \\[", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_ends_the_job_and_names_itself(
    digits: Path, tmp_path: Path, launcher: str, fault: str, words: str
) -> None:
    script, moment = tmp_path / "faulty.py", tmp_path / "moment"
    script.write_text(FAULTY)
    workers = f"--workers={int('killed' in fault)}"  # nobody tells those of a killed rank to end
    flags = ["--cfg=yolov5n", "--img=64", "--batch=4", "--sync-bn", workers, "--noplots"]
    folders = ["--data", digits, "--project", tmp_path, "--log-dir", tmp_path / "logs"]
    job = ranks.start([script, tmp_path, fault, *flags, *folders], 2, launcher, **STALL)
    deadline = time.monotonic() + 120
    while not moment.exists():
        assert job.poll() is None and time.monotonic() < deadline, ranks.finish(job, 1).output
        everyone = ranks.processes(job)
        time.sleep(0.05)
    finished = ranks.finish(job, 60)
    seconds = time.time() - float(moment.read_text())
    assert finished.code != 0
    assert seconds < SECONDS + (STALL_SECONDS if fault == "late" else 0), finished.output
    assert re.search(words, finished.output), finished.output
    if " failed: " in words:
        written = (tmp_path / "logs" / f"rank-01-{socket.gethostname()}.log").read_text()
        assert "Traceback" in written and f"DEBUG rank 1 on {socket.gethostname()}" in written
    own = launcher in ("gloo", "torchrun")  # horovodrun and torchrun have one of their own
    assert finished.output.count("Traceback") <= 1 + own
    ranks.wait_until_gone(everyone)


# Rank 1 is late for the first call after joining in one of the two ways.
LATE = """
import sys, time
from horovod_yolo.distributed import elastic, horovod_backend, horovod_settings

horovod_settings.DEFAULTS["HOROVOD_STALL_CHECK_TIME_SECONDS"] = "1"
if sys.argv[1] == "elastic":
    elastic.join()
comm = horovod_backend.HorovodCommunicator()
time.sleep(3 * comm.rank)
comm.allgather_object(None)
comm.close()
"""


@pytest.mark.parametrize("how", ["static", "elastic"])
def test_horovod_knows_from_the_start_after_how_long_a_rank_is_late(tmp_path: Path, how: str) -> None:
    (tmp_path / "late.py").write_text(LATE)
    finished = ranks.run([tmp_path / "late.py", how], 2)
    assert finished.code == 0, finished.output
    assert re.search("Missing ranks:\\n.*1: \\[", finished.output), finished.output


@pytest.mark.parametrize(
    "launcher", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("gloo", "torchrun")), "mpirun"]
)
def test_a_rank_that_hangs_is_named_and_ended(digits: Path, tmp_path: Path, launcher: str) -> None:
    flags = ["--cfg=yolov5n", "--img=64", "--batch=4", "--workers=0", "--noplots"]
    train = ["train.py", *flags, "--data", digits, "--project", tmp_path]
    job = ranks.start(train, 2, launcher, HOROVOD_YOLO_HEARTBEAT_SECONDS="5")
    table, deadline = tmp_path / "exp" / "steps.csv", time.monotonic() + 120
    while not table.exists() or len(table.read_text().splitlines()) < 2:
        assert job.poll() is None and time.monotonic() < deadline, ranks.finish(job, 1).output
        time.sleep(0.05)
    everyone = ranks.processes(job)
    (victim,) = (pid for pid in ranks.rank_processes(job) if rank_of(pid) == "1")
    os.kill(victim, signal.SIGSTOP)
    stopped = time.monotonic()
    finished = ranks.finish(job, 60)
    assert finished.code != 0
    assert time.monotonic() - stopped < 5 + SECONDS, finished.output
    assert f"rank 1 on {socket.gethostname()} has not answered for 5 s" in finished.output
    ranks.wait_until_gone(everyone)


def rank_of(pid: int) -> str:
    """The rank that the launcher gave to a process."""
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    values = dict(word.split("=", 1) for word in words if "=" in word)
    return next(values[name] for name in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "RANK") if name in values)
