"""The same command runs under every launcher, and each run ends with finite results."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.helpers import ranks

COMMON = "--img 64 --batch 16"
LESS_COMMON = (
    "--img 96 --batch 14 --compression fp16 --precision bf16 --multi-scale --optimizer AdamW --freeze 10 "
    "--cache ram"
)


@pytest.mark.parametrize(
    ("launcher", "flags", "drawn"),
    [
        ("gloo", COMMON, True),
        ("mpi", LESS_COMMON, False),
        ("mpirun", COMMON, False),
        ("torchrun", LESS_COMMON.replace("fp16", "bf16"), False),
    ],
)
def test_two_epochs_end_with_finite_results(
    digits: Path, tmp_path: Path, launcher: str, flags: str, drawn: bool
) -> None:
    """What rank 0 draws does not depend on who launched it."""
    job = ranks.run(
        ["train.py", "--data", digits, "--cfg", "yolov5n", "--epochs", "2", "--workers", "0",
         "--project", tmp_path, "--name", "run", "--save-period", "1", *flags.split(),
         *([] if drawn else ["--noplots"])],
        2,
        launcher,
    )  # fmt: skip
    assert job.code == 0, job.output
    run = tmp_path / "run"
    results = ranks.results(run)
    assert results["world_size"] == 2
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
