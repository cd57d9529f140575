"""How a rank ends: the code and the words, and whether the job is left in order."""

from __future__ import annotations

import os
from typing import Any

import pytest

from horovod_yolo import job as job_module
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.errors import NonFiniteError, UserError


class Closed(LocalCommunicator):
    """Notes whether the job was left in order."""

    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Closed:
    comm = Closed()
    monkeypatch.setattr("horovod_yolo.distributed.launched.connect", lambda: comm)
    monkeypatch.setattr(job_module, "_set_threads", lambda: None)
    monkeypatch.setattr(job_module, "_set_logging", lambda _rank: None)
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
    ],
)
def test_codes_of_jobs(
    job: Closed, capsys: pytest.CaptureFixture[str], error: Exception, code: int, message: str
) -> None:
    for rank in (0, 1):
        job.rank, job.closed = rank, False
        assert job_module.on_ranks(lambda: None, raising(error)) == code
        assert capsys.readouterr().err == (message if rank == 0 else "")
        assert job.closed


def test_a_fault_ends_this_rank_at_once_and_names_it(
    job: Closed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    job.rank, job.size = 3, 4
    with pytest.raises(SystemExit):
        job_module.on_ranks(lambda: None, raising(ZeroDivisionError("ours")))
    assert codes == [1]
    assert not job.closed  # an orderly end would wait for the others
    printed = capsys.readouterr().err
    assert "rank 3 of 4 on " in printed and "ZeroDivisionError: ours" in printed
