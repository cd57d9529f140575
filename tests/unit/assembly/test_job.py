"""How a rank ends: the code and the words, and whether the job is left in order."""

from __future__ import annotations

import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from horovod_yolo.assembly import ending
from horovod_yolo.assembly import job as job_module
from horovod_yolo.core.errors import NonFiniteError, StoppedError, TakenError, UnwrittenError, UserError
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.process import logs


class Closed(LocalCommunicator):
    """Notes whether the job was left in order."""

    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Closed:
    comm = Closed()
    monkeypatch.setattr(job_module, "connect", lambda: comm)
    monkeypatch.setattr(job_module, "share_cores", lambda *_: None)
    monkeypatch.setattr(logs, "set_up", lambda *_, **__: None)
    return comm


def raising(error: Exception) -> Any:
    def run(*_: Any) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("wrong", where="d.yaml", fix="mend it"), 2, "error: d.yaml: wrong. mend it\n"),
        (NonFiniteError("diverged"), 1, "training stopped: diverged\n"),
        (UnwrittenError("no room"), 1, "error: no room\n"),
        (StoppedError("after step 5", saved=False), 1, "stopped on request after step 5\n"),
        (StoppedError("after step 5", saved=True), 3, "stopped on request after step 5\n"),
    ],
)
def test_codes_of_jobs(
    job: Closed, capsys: pytest.CaptureFixture[str], error: Exception, code: int, message: str
) -> None:
    for rank in (0, 1):
        job.rank, job.closed = rank, False
        assert job_module.on_ranks(lambda: None, raising(error)) == code
        printed = capsys.readouterr()
        assert printed.out + printed.err == (message if rank == 0 else "")
        assert job.closed


@pytest.mark.parametrize("place", ["0", "1"])
def test_no_rank_is_refused_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """A launcher may end the first of a host before it speaks, because another has left."""
    waited: list[float] = []
    monkeypatch.setattr(ending.time, "sleep", waited.append)
    monkeypatch.setattr(job_module, "share_cores", lambda *_: None)
    for name, value in {"PMI_RANK": place, "PMI_SIZE": "2", "MPI_LOCALRANKID": place}.items():
        monkeypatch.setenv(name, value)
    assert job_module.on_ranks(lambda: None, raising(AssertionError("it has no part"))) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "`unset PMI_RANK PMI_SIZE`" in said[0]
    assert bool(waited) == (place == "1"), "else there are as many lines as ranks"


def test_a_lone_rank_whose_run_was_taken_over_says_so_in_a_line(
    job: Closed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job_module.on_ranks(lambda: None, raising(TakenError("runs/exp: another job has taken it"))) == 2
    assert capsys.readouterr().err == "error: runs/exp: another job has taken it\n"
    assert job.closed


class Lost(Exception):
    """Another rank is gone."""


@pytest.mark.parametrize(
    ("error", "cause", "traced", "code"),
    [
        (ZeroDivisionError("ours"), "failed: ZeroDivisionError('ours')", True, 1),
        (MemoryError(), "failed: this host is out of memory: lower --batch-size", True, 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: x"), "host is out of memory", True, 1),
        (torch.OutOfMemoryError("CUDA"), "the GPU is out of memory: lower --batch-size", True, 1),
        (Lost("reset by peer\nmore"), "another rank left or does not answer (reset by peer)\n", False, 1),
        (TakenError("another job has taken it"), ": another job has taken it\n", False, 2),
    ],
)
def test_a_fault_ends_this_rank_at_once_and_names_it(
    job: Closed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
    cause: str,
    traced: bool,
    code: int,
) -> None:
    codes: list[int] = []
    temporary = tmp_path / "of multiprocessing"
    temporary.mkdir()
    monkeypatch.setattr(ending, "get_temp_dir", lambda: str(temporary))
    monkeypatch.setattr(ending, "_ending", threading.Lock())

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    job.rank, job.size, job.lost_errors = 3, 4, (Lost,)
    with pytest.raises(SystemExit):
        job_module.on_ranks(lambda: None, raising(error))
    assert codes == [code]
    assert not temporary.exists()  # the interpreter's own end does not come to it
    assert not job.closed  # an orderly end would wait for the others
    printed = capsys.readouterr().err
    assert f"rank 3 on {socket.gethostname()}" in printed and cause in printed
    assert ("Traceback" in printed) is traced


class Spread(LocalCommunicator):
    """A rank of a job on these hosts."""

    def __init__(self, rank: int, hosts: list[str]) -> None:
        self.rank, self.size, self._hosts = rank, len(hosts), hosts

    def allgather_object(self, value: Any) -> list[Any]:
        return [(host, value[1]) for host in self._hosts]


@pytest.mark.parametrize(
    ("rank", "hosts", "said"),
    [
        (0, ["a", "a", "b", "a"], ["ranks: 0, 1, 3 on a; 2 on b"]),
        (1, ["a", "a", "b", "a"], []),
        (0, ["a", "a"], []),
    ],
)
def test_which_rank_is_where_is_said_once(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    hosts: list[str],
    said: list[str],
) -> None:
    monkeypatch.setattr(job_module, "share_cores", lambda *_: None)
    with caplog.at_level(logging.INFO):
        job_module.get_to_know(Spread(rank, hosts))
    assert [record.getMessage() for record in caplog.records] == said


@pytest.mark.parametrize(("omp", "expected"), [(None, 2), ("", 2), ("5", 1)])
def test_ranks_that_share_a_cpuset_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, omp: str | None, expected: int
) -> None:
    """Before they know of each other, and after."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    rank = {"RANK": "1", "SIZE": "8", "LOCAL_SIZE": "4"}
    meeting = {"GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "GLOO_RENDEZVOUS_PORT": "1"}
    for name, value in (rank | meeting).items():
        monkeypatch.setenv(f"HOROVOD_{name}", value)
    monkeypatch.setenv("OMP_NUM_THREADS", omp or "")
    if omp is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        job_module.share_cores()
        assert torch.get_num_threads() == expected
        torch.set_num_threads(1)
        job_module.get_to_know(Spread(1, [socket.gethostname()] * 4))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
