"""The same command runs under every launcher, and each run ends with finite results.

Under `horovodrun --gloo`, with all pictures: tests/integration/test_demo.py.
"""

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
    ("launcher", "flags"),
    [
        ("mpi", LESS_COMMON),
        ("mpirun", COMMON),
        ("torchrun", LESS_COMMON.replace("fp16", "bf16")),
    ],
)
def test_two_epochs_end_with_finite_results(digits: Path, tmp_path: Path, launcher: str, flags: str) -> None:
    job = ranks.run(
        ["train.py", "--data", digits, "--cfg", "yolov5n", "--epochs", "2", "--workers", "0",
         "--project", tmp_path, "--name", "run", "--save-period", "1", "--noplots", *flags.split()],
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
    for file in ("results.csv", "steps.csv", "config.yaml", "weights/last.pt", "weights/best.pt",
                 "weights/epoch1.pt"):  # fmt: skip
        assert (run / file).stat().st_size > 0, file
    assert len((run / "results.csv").read_text().splitlines()) == 1 + 2
    assert not list(run.rglob("*.tmp"))
