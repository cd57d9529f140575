"""Promise 2: a killed run that is resumed ends, bit for bit, where the uninterrupted one ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.helpers import ranks
from tests.helpers.runs import checkpoint, same_bits, sha256, steps

WORLD_SIZE = 3  # with three, the order of additions matters; with two it cannot
COMPARED = ("model", "ema", "optimizer", "early_stopping", "metrics", "step", "epoch", "sampler")


def arguments(data: Path, folder: Path, name: str, model: str) -> list[str | Path]:
    hyp = folder / "hyp.yaml"
    hyp.write_text("nbs: 6\n")  # a step a batch, however long the warm-up of the model's family is
    return [
        "train.py", "--data", data, "--cfg", model, "--hyp", hyp, "--img", "64", "--batch", "6",
        "--epochs", "2", "--commit-every", "2", "--workers", "0", "--noplots",
        "--project", folder, "--name", name,
    ]  # fmt: skip


def wait_for_commit(job: ranks.subprocess.Popen[str], run: Path, step: int) -> None:
    """Until a checkpoint of that step, or of a later one, is on the disk."""
    last, deadline = run / "weights/last.pt", time.monotonic() + 120
    while time.monotonic() < deadline:
        assert job.poll() is None, job.communicate()[0]
        if last.exists() and len(steps(run)) >= step and checkpoint(run)["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"{run} did not reach step {step}")


@pytest.mark.slow  # test_preemption.py kills two ranks, and unit/assembly/test_run_over_ranks.py has three
@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("yolov5n", []),
        ("yolov5n", ["--sync-bn"]),
        ("yolov8n", []),
        ("yolo11n", ["--sync-bn"]),
        ("yolo26n", ["--sync-bn", "--optimizer", "MuSGD"]),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    digits: Path, tmp_path: Path, model: str, flags: list[str]
) -> None:
    whole = ranks.run([*arguments(digits, tmp_path, "whole", model), *flags], WORLD_SIZE)
    assert whole.code == 0, whole.output

    job = ranks.start([*arguments(digits, tmp_path, "killed", model), *flags], WORLD_SIZE)
    wait_for_commit(job, tmp_path / "killed", 6)  # five steps an epoch: in the middle of the second
    assert len(ranks.rank_processes(job)) == WORLD_SIZE
    assert ranks.kill_ranks(job).code != 0
    before = checkpoint(tmp_path / "killed")
    assert before["sampler"]["batch"] > 0, "the newest checkpoint is of the middle of an epoch"

    resumed = ranks.run(["train.py", "--resume", tmp_path / "killed", "--workers", "1"], WORLD_SIZE)
    assert resumed.code == 0, resumed.output
    a, b = checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole")
    for part in COMPARED:
        assert same_bits(a[part], b[part]), part
    assert steps(tmp_path / "killed") == steps(tmp_path / "whole")


@pytest.mark.slow  # test_preemption.py goes from two ranks to one and to three
@pytest.mark.parametrize("model", ["yolov5n", "yolov8n", "yolo26n"])
def test_killed_on_four_ranks_goes_on_on_one_and_then_on_three(
    digits: Path, tmp_path: Path, model: str
) -> None:
    fresh = arguments(digits, tmp_path, "killed", model)
    for size, arrived in ((4, 3), (1, 7)):
        job = ranks.start(fresh if size == 4 else ["train.py", "--resume", tmp_path / "killed"], size)
        wait_for_commit(job, tmp_path / "killed", arrived)
        assert ranks.kill_ranks(job).code != 0
    resumed = ranks.run(["train.py", "--resume", tmp_path / "killed"], 3)
    assert resumed.code == 0, resumed.output
    assert ranks.results(tmp_path / "killed")["slices"] == 4
    whole = ranks.run(arguments(digits, tmp_path, "whole", model), 4)
    assert whole.code == 0, whole.output
    assert sha256(tmp_path / "killed") == sha256(tmp_path / "whole")
