"""Ranks that torchrun starts anew: how they end like earlier ones, or go on with their run."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly import anew, ending
from horovod_yolo.assembly.anew import EarlierRanks, say_restarts, with_commits
from horovod_yolo.assembly.run import start_run
from horovod_yolo.assembly.run_lock import RunLock
from horovod_yolo.assembly.train import train
from horovod_yolo.core.errors import StoppedError, UserError
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.launchers.launcher import Launcher
from horovod_yolo.distributed.launchers.torchrun import Torchrun
from horovod_yolo.process import restarts
from tests.helpers.world import world_outcomes

from .test_run import COMM, flags

MEETING = ("10.0.0.1", 29500)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Be a rank that an agent has started so many times before."""
    place = tmp_path / "torchelastic_a1/job_b2/attempt_0/0"
    place.mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(place / "error.json"))

    def start(times: int) -> Launcher:
        told = Torchrun(local_rank=0, local_size=1, address=MEETING, restarts=times, most_restarts=3)
        for module in (anew, ending):
            monkeypatch.setattr(module, "launcher", lambda: told)
        monkeypatch.setattr(anew, "_runs", iter(range(1, 9)))
        return told

    start(0)
    return start


def test_an_end_that_tells_the_user_something_is_final(
    started: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(ending, "end_at_once", leave)
    ending.say_end(COMM, RuntimeError("a fault of ours"))
    ending.end_as_before()
    ending.say_end(COMM, UserError("wrong", where="d.yaml"))
    capsys.readouterr()
    started(1)
    with pytest.raises(SystemExit) as left:
        ending.end_as_before()
    assert left.value.code == 2 and capsys.readouterr().err == "error: d.yaml: wrong\n"


@pytest.mark.parametrize(
    ("request_", "counted", "goes_on"),
    [("certain", 0, False), ("here", 0, True), ("here", 1, False), ("elsewhere", 1, True)],
)
def test_torchruns_own_request_is_not_the_end(
    started: Any, monkeypatch: pytest.MonkeyPatch, request_: Any, counted: int, goes_on: bool
) -> None:
    """Where a host joins, it stops the ranks with SIGTERM and starts them anew, without counting."""
    left: list[int] = []
    monkeypatch.setattr(ending, "end_at_once", left.append)
    ending.say_end(COMM, StoppedError("after step 5", saved=True, request=request_))
    started(counted)
    ending.end_as_before()
    assert left == ([] if goes_on else [3])


def test_a_run_goes_on_without_being_told_to(started: Any, digits: Path, tmp_path: Path) -> None:
    """The command says nothing of --resume; its run is not the newest, nor of the name that it says."""
    given = flags(digits, tmp_path, imgsz=64, epochs=2, noplots=True, noval=True)
    start_run("", dict(given), COMM)  # another's
    run = start_run("", dict(given), COMM)
    assert run.config.commit_every == 10 and run.folder.name == "exp2"
    started(1)
    assert restarts.noted_run(2) == str(run.folder)
    restarts.note_run(1, run.folder)  # as if it were its only training
    again = start_run("", dict(given), COMM)
    assert again.folder == run.folder and again.state is None  # begun, and not one step made
    train(replace(again, lock=RunLock()), COMM)
    started(2)
    finished = start_run("", dict(given), COMM)
    assert finished.folder == run.folder and finished.state and finished.state["epoch"] == 2


def test_commits_within_an_epoch_are_the_default(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_commits({})["commit_every"] == 10
    assert with_commits({"commit_every": 0})["commit_every"] == 0
    monkeypatch.setattr(anew, "launcher", lambda: Torchrun(address=MEETING))
    assert with_commits({}) == {}


def test_a_folder_that_not_all_hosts_share_is_said(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hosts = iter(range(9))
    monkeypatch.setattr(anew.socket, "gethostname", lambda: f"host{next(hosts)}")

    def look(comm: Communicator) -> None:
        lock, folder = RunLock(), tmp_path / ("mine" if comm.rank == 0 else "other")
        folder.mkdir()
        if comm.rank == 0:
            lock.take(folder)
        say_restarts(10, folder, lock, comm)
        lock.release()

    with caplog.at_level(logging.INFO):
        assert world_outcomes(2, look) == [None, None]
    assert (
        "every 10 steps and after each epoch); losing 10.0.0.1, where ranks meet, ends the job" in caplog.text
    )
    assert "NOT SHARED BY ALL HOSTS: host" in caplog.text


def test_rank_0_on_a_host_without_the_checkpoints_does_not_begin_anew(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(weights: Path) -> list[Path]:
        return [] if threading.current_thread().name == "rank 0" else [tmp_path]

    restarts.note_run(1, tmp_path / "exp")
    monkeypatch.setattr(anew, "generations", seen)
    for error in world_outcomes(2, EarlierRanks):
        assert isinstance(error, UserError) and "and rank 0 is on" in str(error)
