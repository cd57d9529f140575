"""torchrun starts all ranks anew where one is lost, and the run goes on from its last commit."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from horovod_yolo.assembly.job import require_fitting_launch
from horovod_yolo.cli.train import without_local_rank
from horovod_yolo.core.errors import UserError
from tests.helpers import ranks
from tests.helpers.runs import checkpoint, same_bits, steps
from tests.parallel.test_rank_failure import rank_of

RANK = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture
def rank_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_lost_rank_costs_the_steps_since_the_last_commit(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store where ranks meet lives on, with the addresses of those that are gone."""
    train = ["train.py", "--data", digits, "--cfg", "yolov5n", "--img", "64", "--batch", "6", "--epochs", "2"]
    flags = ["--workers", "0", "--noplots", "--noval", "--commit-every", "2"]
    job = [*train, *flags, "--project", tmp_path, "--name"]
    whole = ranks.run([*job, "whole"], 2, "torchrun")
    assert whole.code == 0, whole.output
    monkeypatch.setitem(ranks.LAUNCHERS, "torchrun", (*ranks.LAUNCHERS["torchrun"], "--max-restarts", "1"))
    started = ranks.start([*job, "run"], 2, "torchrun")
    table, deadline = tmp_path / "run" / "steps.csv", time.monotonic() + 120
    while not table.exists() or len(table.read_text().splitlines()) < 5:
        assert started.poll() is None and time.monotonic() < deadline, ranks.finish(started, 1).output
        time.sleep(0.02)
    (victim,) = (pid for pid in ranks.rank_processes(started) if rank_of(pid) == "1")
    os.kill(victim, signal.SIGKILL)
    done = ranks.finish(started, 120)
    assert done.code == 0, done.output
    assert re.search(r"resume from .*last\.pt: epoch \d, step [2-9]", done.output)
    a, b = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    for part in ("model", "ema", "optimizer", "step", "epoch"):
        assert same_bits(a[part], b[part]), part
    assert steps(tmp_path / "whole") == steps(tmp_path / "run")


def test_what_does_not_fit_torchrun_is_said(rank_of_torchrun: pytest.MonkeyPatch) -> None:
    require_fitting_launch(False)
    with pytest.raises(UserError, match="--nnodes 2:4 --max-restarts 3"):
        require_fitting_launch(True)


@pytest.mark.parametrize("flag", ["--local-rank", "--local_rank"])
def test_the_flag_of_the_older_launcher(rank_of_torchrun: pytest.MonkeyPatch, flag: str) -> None:
    assert without_local_rank(["--cfg", "a", f"{flag}=0", "--data", "b"]) == ["--cfg", "a", "--data", "b"]
    assert without_local_rank([flag, "0"]) == []
    with pytest.raises(UserError, match="--local-rank 1, but the environment says LOCAL_RANK=0"):
        without_local_rank([flag, "1"])
    for name in RANK:
        rank_of_torchrun.delenv(name)
    assert without_local_rank([flag, "0"]) == [flag, "0"]
