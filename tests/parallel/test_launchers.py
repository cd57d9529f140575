"""The same command runs under every launcher, and each run ends with finite results."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.helpers import ranks

LESS_COMMON = (
    "--cfg yolov5n --img 96 --batch 14 --epochs 2 --workers 0 --compression fp16 --precision bf16 "
    "--multi-scale --optimizer AdamW --freeze 10 --cache ram --noplots"
)


@pytest.mark.parametrize(("launcher", "world_size"), [("gloo", 2), ("mpi", 2), ("mpirun", 2)])
def test_two_epochs_end_with_finite_results(
    digits: Path, tmp_path: Path, launcher: str, world_size: int
) -> None:
    drawn = launcher == "gloo"  # by rank 0, whoever launched it
    job = ranks.run(
        ["train.py", "--data", digits, "--cfg", "yolov5n", "--img", "64", "--batch", "16", "--epochs", "2",
         "--workers", "0", "--project", tmp_path, "--name", "run", "--save-period", "1",
         *([] if drawn else ["--noplots"])],
        world_size,
        launcher,
    )  # fmt: skip
    assert job.code == 0, job.output
    run = tmp_path / "run"
    results = ranks.results(run)
    assert results["world_size"] == world_size
    assert results["epochs"] == 2
    train, metrics = results["train"], results["metrics"]
    assert isinstance(train, dict) and isinstance(metrics, dict)
    numbers = [*train.values(), *(metrics[key] for key in ("precision", "recall", "mAP50", "mAP50-95"))]
    assert len(numbers) == 7 and all(math.isfinite(number) for number in numbers)
    assert all(value > 0 for value in train.values())
    assert len(metrics["per_class"]) == 10
    plots = "results.png", "PR_curve.png", "report.html", "train_samples.png", "val_predictions.png"
    for file in ("results.csv", "steps.csv", "config.yaml", "weights/last.pt", "weights/best.pt",
                 "weights/epoch1.pt", *(plots if drawn else ())):  # fmt: skip
        assert (run / file).stat().st_size > 0, file
    assert len((run / "results.csv").read_text().splitlines()) == 1 + 2
    assert not list(run.rglob("*.tmp"))


def test_fp16_compression_trains(digits: Path, tmp_path: Path) -> None:
    job = ranks.run(
        ["train.py", "--data", digits, "--project", tmp_path, "--name", "run", *LESS_COMMON.split()], 2
    )
    assert job.code == 0, job.output
    train = ranks.results(tmp_path / "run")["train"]
    assert isinstance(train, dict) and all(math.isfinite(value) for value in train.values())
