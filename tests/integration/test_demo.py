"""`make demo`, as a newcomer runs it, and shorter: it makes its files and the loss falls."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from horovod_yolo.report.finished import read_rows
from tests.helpers import ranks

INNER = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # of the make that runs the tests


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("epochs", "map50", "falling"),
    [
        (2, 0.0, {"box": 1.0, "cls": 1.0}),  # the objects' own loss rises at first
        pytest.param(24, 0.80, {"box": 0.8, "obj": 0.8, "cls": 0.8}, marks=pytest.mark.slow),
    ],
)
def test_the_demo_learns_the_digits(
    tmp_path: Path, epochs: int, map50: float, falling: dict[str, float]
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in INNER}
    made = subprocess.run(
        [
            *("make", "demo", f"DEMO_EPOCHS={epochs}"),
            *(f"DEMO_DATA={tmp_path / 'digits'}", f"DEMO_RUN={tmp_path / 'run'}"),
        ],
        cwd=ranks.REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    run = tmp_path / "run"
    for file in ("report.html", "results.png", "results.csv", "weights/best.pt"):
        assert str(run / file) in made.stdout and (run / file).is_file(), file
    for file in ("PR_curve.png", "train_samples.png", "val_predictions.png", "steps.csv", "config.yaml"):
        assert (run / file).stat().st_size > 0, file
    results = ranks.results(run)
    assert (results["world_size"], results["epochs"]) == (2, epochs)
    metrics = results["metrics"]
    assert isinstance(metrics, dict) and metrics["mAP50"] >= map50 and len(metrics["per_class"]) == 10
    rows = read_rows(run / "results.csv")
    for term, share in falling.items():
        assert rows[-1][f"train/{term}_loss"] < share * rows[0][f"train/{term}_loss"], term
