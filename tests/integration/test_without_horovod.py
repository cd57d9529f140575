"""A user without Horovod and without a compiler gets many ranks from `pip install` alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.fresh import Fresh

pytestmark = pytest.mark.slow
SCRIPT = """
import sys
from horovod_yolo.api import YOLO
flags = dict(imgsz=64, batch=14, max_steps=1, workers=0, device="cpu", noplots=True)
results = YOLO("yolov5n").train(data=sys.argv[1], project=sys.argv[2], name="python", np=2, **flags)
print("ranks from Python:", results["world_size"])
"""


def test_ranks_from_pip_alone(digits: Path, tmp_path: Path) -> None:
    fresh = Fresh.make(tmp_path)
    source = tmp_path / "source"
    fresh.install("-c", source / "constraints.txt")
    flags = ["--data", digits, "--cfg", "yolov5n", "--img", "64", "--batch", "14", "--max-steps", "1"]
    flags += ["--workers", "0", "--device", "cpu", "--noplots", "--project", tmp_path]
    train = [source / "train.py", *flags, "--name"]
    torchrun = tmp_path / "venv/bin/torchrun"
    fresh.run(torchrun, "--standalone", "--nproc-per-node", "2", *train, "torchrun")
    fresh.run(fresh.python, *train, "alone")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    said = fresh.run(fresh.python, script, digits, tmp_path)
    assert "starting 2 ranks on localhost, through torch.distributed" in said
    assert "ranks from Python: 2" in said
    for module in ("horovod", "sklearn", "mpi4py", "onnx"):
        assert fresh.lacks(module), f"{module} is there: the base brings it"
