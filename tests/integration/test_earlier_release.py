"""Checkpoints of an earlier release still resume, score and load; see tests/data/README.md."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import torch

from horovod_yolo.api import YOLO
from horovod_yolo.checkpoint import store
from horovod_yolo.cli import main
from tests.helpers.runs import steps

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the two checkpoints."""
    weights = tmp_path / "run" / "weights"
    weights.mkdir(parents=True)
    for name in ("last.pt", "best.pt"):
        (weights / name).write_bytes(lzma.decompress((DATA / f"{name}.xz").read_bytes()))
    return tmp_path / "run"


def test_last_pt_resumes(run: Path, digits: Path) -> None:
    last = run / "weights" / "last.pt"
    state = store.read(last)
    state["config"]["data"] = str(digits)
    store.write(last, store.serialise(state))
    assert main(["train", "--resume", str(run), "--device", "cpu", "--workers", "0", "--noplots"]) == 0
    assert [row["step"] for row in steps(run)] == [4]
    results = json.loads((run / "results.json").read_text())
    assert results["steps"] == 4 and results["epochs"] == 2
    assert results["train"]["box_loss"] > 0


def test_best_pt_scores(run: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = run / "weights" / "best.pt"
    given = ["--weights", str(best), "--data", str(digits), "--device", "cpu", "--workers", "0", "--noplots"]
    assert main(["val", *given]) == 0
    assert "mAP50" in capsys.readouterr().out


def test_best_pt_predicts(run: Path, digits: Path) -> None:
    image = next((digits.parent / "images" / "val").iterdir())
    (found,) = YOLO(run / "weights" / "best.pt").predict([image], conf_threshold=1e-6)
    assert torch.isfinite(found.boxes_xyxy).all()


def test_weights_of_best_pt_begin_a_run(run: Path, digits: Path, tmp_path: Path) -> None:
    flags = ["--img", "64", "--batch", "14", "--epochs", "1", "--max-steps", "1", "--workers", "0"]
    place = ["--device", "cpu", "--noplots", "--project", str(tmp_path), "--name", "new"]
    best = str(run / "weights" / "best.pt")
    assert main(["train", "--weights", best, "--data", str(digits), *flags, *place]) == 0
    assert [row["step"] for row in steps(tmp_path / "new")] == [1]
