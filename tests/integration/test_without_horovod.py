"""A user without Horovod and without a compiler gets many ranks from `pip install` alone."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest

from tests.helpers.ranks import REPOSITORY

pytestmark = pytest.mark.slow
SCRIPT = """
import sys
from horovod_yolo.api import YOLO
flags = dict(imgsz=64, batch=14, max_steps=1, workers=0, device="cpu", noplots=True)
results = YOLO("yolov5n").train(data=sys.argv[1], project=sys.argv[2], name="python", np=2, **flags)
print("ranks from Python:", results["world_size"])
"""


def test_ranks_from_pip_alone(digits: Path, tmp_path: Path) -> None:
    fresh, tools = tmp_path / "venv", tmp_path / "tools"
    venv.create(fresh, with_pip=True)
    tools.mkdir()
    for name in ("cc", "gcc", "c++", "g++", "clang"):
        (tools / name).write_text("#!/bin/sh\necho no compiler here >&2; exit 1\n")
        (tools / name).chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX")}
    environ |= {"PATH": f"{tools}:{fresh / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environ |= {"TMPDIR": str(tmp_path)}  # torchrun leaves a folder there

    def run(*words: str | Path, seconds: float = 300) -> str:
        done = subprocess.run(
            [*map(str, words)],
            env=environ,
            cwd=tmp_path,  # not in the checkout: what is installed is used
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python = fresh / "bin" / "python"
    source = tmp_path / "source"  # pip builds in the folder that it installs
    run("git", "clone", "--quiet", REPOSITORY, source)
    run(python, "-m", "pip", "install", "-q", "-c", source / "constraints.txt", source, seconds=3600)
    flags = ["--data", digits, "--cfg", "yolov5n", "--img", "64", "--batch", "14", "--max-steps", "1"]
    flags += ["--workers", "0", "--device", "cpu", "--noplots", "--project", tmp_path]
    train = [source / "train.py", *flags, "--name"]
    run(fresh / "bin" / "torchrun", "--standalone", "--nproc-per-node", "2", *train, "torchrun")
    run(python, *train, "alone")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    said = run(python, script, digits, tmp_path)
    assert "starting 2 ranks on localhost, through torch.distributed" in said
    assert "ranks from Python: 2" in said
    for module in ("horovod", "sklearn", "mpi4py", "onnx"):
        done = subprocess.run(
            [python, "-c", f"import {module}"], env=environ, capture_output=True, check=False
        )
        assert done.returncode == 1, f"{module} is there: the base brings it"
