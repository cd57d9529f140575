"""The guard ends a rank that hangs, and one whose launcher is gone; it outlives no rank."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from horovod_yolo.distributed import heartbeat

RANK = """
import sys, time
from horovod_yolo.distributed.heartbeat import start_guard
start_guard(3)
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def rank(**variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process with a guard; what both print comes through pipes."""
    process = subprocess.Popen(
        [sys.executable, "-c", RANK],
        env={**os.environ, heartbeat.VARIABLE: "2", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def guard_of(process: subprocess.Popen[str]) -> psutil.Process:
    (guard,) = psutil.Process(process.pid).children()
    return guard


def test_a_stopped_rank_is_ended_and_named() -> None:
    with rank() as process:
        process.send_signal(signal.SIGSTOP)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    host = socket.gethostname()
    assert errors == f"rank 3 on {host} has not answered for 2 s: it hangs or was stopped. It is ended\n"


def test_a_rank_that_sleeps_is_left_alone() -> None:
    with rank() as process, pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=4)


def test_a_rank_whose_output_nobody_reads_is_ended() -> None:
    with rank() as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=30) == -signal.SIGKILL
        assert process.stderr is not None
        assert "has lost its launcher: nobody reads its output" in process.stderr.read()
        process.stdout = None


def test_the_guard_ends_with_its_rank() -> None:
    with rank() as process:
        guard = guard_of(process)
        process.kill()
        process.wait()
        guard.wait(timeout=10)


@pytest.mark.parametrize(
    ("refusal", "listens"), [(OSError("no route"), False), (ConnectionRefusedError("nobody listens"), True)]
)
def test_a_launcher_that_does_not_answer_ends_the_rank(
    monkeypatch: pytest.MonkeyPatch, refusal: OSError, listens: bool
) -> None:
    """Calls are counted: a single lost one is nothing."""
    calls: list[object] = []

    def unreachable(address: object, timeout: float) -> None:
        calls.append(address)
        raise refusal

    monkeypatch.setattr(heartbeat.socket, "create_connection", unreachable)
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN_CALLS", 0.05)
    child = subprocess.Popen(["sleep", "60"])
    read, write = os.pipe()
    try:
        guard = heartbeat.Guard(child.pid, read, 60.0, ("10.9.9.9", 1), listens)
        monkeypatch.setattr(heartbeat.os, "getppid", lambda: child.pid)
        os.write(write, b"5\n")
        guard.watch()
        assert child.wait(timeout=10) == -signal.SIGKILL
        assert len(calls) >= heartbeat.CALLS_WITHOUT_ANSWER
    finally:
        child.kill()
        child.wait()
        os.close(read)
        os.close(write)


def test_a_launcher_that_need_not_listen_may_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end closes the output."""
    calls: list[object] = []

    def refused(address: object, timeout: float) -> None:
        calls.append(address)
        if len(calls) > 2 * heartbeat.CALLS_WITHOUT_ANSWER:
            guard._over.set()
        raise ConnectionRefusedError

    monkeypatch.setattr(heartbeat.socket, "create_connection", refused)
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN_CALLS", 0.01)
    guard = heartbeat.Guard(1, 0, 60.0, ("10.9.9.9", 1))
    guard._call()
    assert len(calls) > 2 * heartbeat.CALLS_WITHOUT_ANSWER and guard._reason(0.0) == ""


def test_a_rank_may_take_longer_to_leave() -> None:
    """With the interpreter's end its threads stop, the pulse too; on a busy machine that lasts."""
    program = RANK.replace("time.sleep(60)", "import ctypes")
    program += """
class Slow:
    def __del__(self, sleep=ctypes.PyDLL(None).sleep):  # keeps the interpreter, as tidying up does
        sleep(4)
kept = Slow()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, heartbeat.VARIABLE: "2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_rank_that_never_gets_done_with_leaving_is_ended() -> None:
    guard = heartbeat.Guard(0, 0, 2.0, ("", 0))
    guard._hear(["3", heartbeat.LEAVING, "3"])
    assert not guard._reason(heartbeat.SECONDS_TO_LEAVE - 1)
    assert guard._reason(heartbeat.SECONDS_TO_LEAVE).startswith("has not answered for 60 s")
    patient = heartbeat.Guard(0, 0, 0.0, ("", 0))
    patient._hear([heartbeat.LEAVING])
    assert not patient._reason(1e6)  # 0 is never


def test_a_file_counts_as_read(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        assert not heartbeat._is_closed(file.fileno())
    read, write = os.pipe()
    assert not heartbeat._is_closed(write)
    os.close(read)
    assert heartbeat._is_closed(write)
    os.close(write)
    time.sleep(0)
