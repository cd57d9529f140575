"""Two jobs and one run folder: the second is refused, unless the first is gone or gives way."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly import run_lock
from horovod_yolo.assembly.run_lock import NAME, RunLock, batch_job, beginning, is_running, judged
from horovod_yolo.core.errors import StoppedError, TakenError, UserError
from horovod_yolo.io.lock import Verdict

MINE: dict[str, Any] = {"token": "a", "host": "h", "place": "p", "pid": 1, "began": "5", "job": ""}


def content(**changes: Any) -> bytes:
    return json.dumps({**MINE, "token": "b", **changes}).encode()


def test_a_job_refuses_another_one_and_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    first, second = RunLock(), RunLock()
    first.take(tmp_path)
    first.take(tmp_path)
    with pytest.raises(UserError, match=rf"at work on this run: process {os.getpid()} on \S+, job 77\. wait"):
        second.take(tmp_path)
    first.release()
    second.take(tmp_path)
    second.release()
    assert [*tmp_path.iterdir()] == []


def test_what_is_known_of_an_owner() -> None:
    here = {"place": "p", "pid": os.getpid()}
    assert judged(content(**here, began=beginning(os.getpid())), MINE) is Verdict.ALIVE
    assert judged(content(**here, began="0"), MINE) is Verdict.GONE, "the number is another process's now"
    assert judged(content(place="elsewhere"), MINE) is Verdict.UNKNOWN
    assert judged(content(place="elsewhere", job="77"), {**MINE, "job": "77"}) is Verdict.GONE
    assert judged(content(place="elsewhere", job="78"), {**MINE, "job": "77"}) is Verdict.UNKNOWN
    assert judged(content(place="elsewhere", token="a"), MINE) is Verdict.GONE, "handed on"
    for odd in (b"", b"\xff", b"[]", b"[" * 4096, content()[:30]):
        assert judged(odd, MINE) is Verdict.UNKNOWN


def test_a_process_that_ended_is_gone_before_its_parent_looks() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = beginning(process.pid)
    assert is_running(process.pid, began)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert not is_running(process.pid, began)
    process.communicate()
    assert not is_running(process.pid, began) and not is_running(None, None)


def test_the_elements_of_an_array_are_jobs_of_their_own() -> None:
    assert batch_job({"SLURM_JOB_ID": "7"}) == "7"
    assert batch_job({"LSB_JOBID": "7", "LSB_JOBINDEX": "0"}) == "7"
    assert batch_job({"LSB_JOBID": "7", "LSB_JOBINDEX": "3"}) == "7[3]"
    assert batch_job({}) == ""


def test_a_run_that_was_taken_over_is_not_written_to(tmp_path: Path) -> None:
    lock = RunLock()
    lock.take(tmp_path)
    lock.on_commit({}, best=False)
    (tmp_path / NAME).write_bytes(content(host="other"))
    lock._lock.touch()  # type: ignore[union-attr]  # it is held
    with pytest.raises(TakenError, match="taken this run over: process 1 on other"):
        lock.on_commit({}, best=False)
    with pytest.raises(UserError, match="taken this run over"):
        lock.take(tmp_path)
    lock.release()
    assert (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    ("error", "handed_on", "there"),
    [
        (None, True, False),
        (UserError("x"), True, False),
        (StoppedError("x"), True, False),
        (RuntimeError("a rank is lost"), True, True),
        (RuntimeError("a fault"), False, False),
    ],
)
def test_it_is_released_when_the_job_is_over(
    tmp_path: Path, error: Exception | None, handed_on: bool, there: bool
) -> None:
    lock = RunLock()
    try:
        with lock.until_over(handed_on=handed_on):
            lock.take(tmp_path)
            if error:
                raise error
    except (UserError, RuntimeError) as caught:
        assert caught is error
    assert (tmp_path / NAME).exists() == there
    newcomer = RunLock(lock.token)
    newcomer.take(tmp_path)  # an elastic job's next rank 0
    lock.drop()
    newcomer.release()
    assert not (tmp_path / NAME).exists()


def test_a_disk_that_takes_no_lock_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = RunLock()
    with caplog.at_level(logging.WARNING, run_lock.__name__):
        lock.take(tmp_path / "not there")
    assert "no lock can be made (No such file or directory)" in caplog.text
    lock.release()
