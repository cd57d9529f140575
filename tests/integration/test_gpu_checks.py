"""The script for a first GPU, run where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import checkpoint

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
