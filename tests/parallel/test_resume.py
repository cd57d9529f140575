"""Promise 2: a killed run that is resumed ends, bit for bit, where the uninterrupted one ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import ranks
from tests.helpers.runs import checkpoint, same_bits, steps

WORLD_SIZE = 3  # with three, the order of additions matters; with two it cannot
COMPARED = ("model", "ema", "optimizer", "early_stopping", "metrics", "step", "epoch", "sampler")


def arguments(data: Path, folder: Path, name: str) -> list[str | Path]:
    return [
        "train.py", "--data", data, "--cfg", "yolov5n", "--img", "64", "--batch", "6", "--epochs", "2",
        "--commit-every", "2", "--workers", "0", "--noplots", "--project", folder, "--name", name,
    ]  # fmt: skip


def wait_for_step(job: ranks.subprocess.Popen[str], run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert job.poll() is None, job.communicate()[0]
        if (run / "steps.csv").exists() and len(steps(run)) >= step and (run / "weights/last.pt").exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{run} did not reach step {step}")


@pytest.mark.slow  # test_preemption.py kills two ranks, and unit/assembly/test_run_over_ranks.py has three
@pytest.mark.parametrize("sync_bn", [False, True], ids=["local", "sync"])
def test_killed_and_resumed_equals_uninterrupted(digits: Path, tmp_path: Path, sync_bn: bool) -> None:
    flags = ["--sync-bn"] if sync_bn else []
    whole = ranks.run([*arguments(digits, tmp_path, "whole"), *flags], WORLD_SIZE)
    assert whole.code == 0, whole.output

    job = ranks.start([*arguments(digits, tmp_path, "killed"), *flags], WORLD_SIZE)
    wait_for_step(job, tmp_path / "killed", 7)  # five steps an epoch: in the middle of the second
    victims = ranks.rank_processes(job)
    assert len(victims) == WORLD_SIZE
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    killed = ranks.finish(job, 60)
    assert killed.code != 0
    before = checkpoint(tmp_path / "killed")
    assert before["sampler"]["batch"] > 0, "the newest checkpoint is of the middle of an epoch"

    resumed = ranks.run(["train.py", "--resume", tmp_path / "killed", "--workers", "1"], WORLD_SIZE)
    assert resumed.code == 0, resumed.output
    a, b = checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole")
    for part in COMPARED:
        assert same_bits(a[part], b[part]), part
    assert steps(tmp_path / "killed") == steps(tmp_path / "whole")
