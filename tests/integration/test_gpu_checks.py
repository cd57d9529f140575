"""The scripts for a first GPU, run where there is none."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from horovod_yolo.core.precision import Precision
from tests.helpers.runs import checkpoint
from tests.helpers.short_runs import random_batch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_checks.py"
CHECKS = (
    *("data", "tests of the GPU", "a run on the CPU, stopped", "goes on on the GPU"),
    *(
        "two ranks on it over torch's Gloo, fp16 sent",
        "ONNX",
        "Horovod built",
        "one rank over Horovod, fp16 sent",
    ),
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_but_nccl_and_speed_runs_on_a_cpu(tmp_path: Path) -> None:
    folder, out = tmp_path / "wheels", tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, SCRIPT, folder, "--out", out]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    table = (out / "table.md").read_text()
    assert ended.returncode == 0, ended.stdout
    for check in CHECKS:
        assert f"| {check} | passed, " in table, table
    assert "no GPU: on the CPU" in ended.stdout
    assert "resume from" in (out / "logs" / "goes_on_on_the_GPU.log").read_text()
    assert checkpoint(out / "runs" / "from_cpu")["epoch"] == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_benchmark_for_one_gpu_runs_tiny_on_a_cpu(tmp_path: Path) -> None:
    found = tmp_path / "gpu.json"
    command = [sys.executable, SCRIPT.with_name("gpu.py"), "--tiny", "--models", "yolov5n", "--out", found]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(found.read_text())["rows"]
    assert [(row["precision"], row["compiled"], row["slices"], row["sums"]) for row in rows] == [
        ("fp32", False, 1, "float"),
        ("bf16", False, 1, "float"),
        ("bf16", True, 1, "float"),
        ("fp32", False, 2, "float"),
        ("fp32", False, 2, "exact"),
    ]
    assert all(row["images_per_s"] > 0 and not row.get("failed") for row in rows)


@pytest.mark.parametrize("cfg", ["yolov5n", "yolov8n"])
def test_steps_of_the_benchmark_for_one_gpu(cfg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run, and cost three times the published 4.5 and 8.7 billion operations of 640 px forward."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu, "SIZE", 64)
    precision = Precision(device=torch.device("cpu"), dtype=torch.float32)
    stepper = gpu.make_stepper(cfg, precision, batch=2)
    batch = random_batch(2, 64)
    stepper.step(iter([batch]), [1.0])
    published = {"yolov5n": 4.5e9, "yolov8n": 8.7e9}[cfg] / 100
    assert gpu.flops_of_step(stepper, precision, batch) / 2 == pytest.approx(3 * published, rel=0.06)
