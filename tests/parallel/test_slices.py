"""Promise 1 to the bit, with real processes and networks: fixed slices on any number of ranks.

YOLOv5's own rates and augmentation, without synchronised batch norm. 28 images in batches of 13 and three
slices: their sizes differ, two ranks hold one and two of them, and the last batch leaves one empty. The
arithmetic on more ranks and other shares is in tests/unit/training/test_slices.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from horovod_yolo.distributed.agreement import checksum
from tests.helpers import ranks
from tests.helpers.runs import steps

FLAGS = "--img 128 --batch 13 --slices 3 --epochs 20 --max-steps 6 --noplots --workers 0"


def trained(data: Path, folder: Path, cfg: str, launcher: str, size: int, *flags: object) -> dict[str, Any]:
    """Everything of a run that may not depend on who made it."""
    name = f"{cfg}-{launcher}{size}"
    given = flags or ("--data", data, "--cfg", cfg, "--project", folder, "--name", name, *FLAGS.split())
    job = ranks.run(["train.py", *given], size, launcher)
    assert job.code == 0, job.output
    run = folder / name
    results = ranks.results(run)
    assert (results["world_size"], results["slices"], results["bitwise"]) == (size, 3, "yes")
    state = torch.load(run / "weights" / "last.pt", weights_only=True)
    moments = state["optimizer"]["state"]
    tensors = {
        f"{n}.{k}": v for n, own in moments.items() for k, v in own.items() if isinstance(v, torch.Tensor)
    }
    keys = ("box_loss", "cls_loss", "grad_norm")
    return {
        "weights": checksum({**state["model"], **tensors, **state["exchange"]}),
        "average": checksum(state["ema"]["weights"]),
        "losses": [[row[key] for key in keys if key in row] for row in steps(run)],
        "metrics": results["metrics"],
    }


@pytest.mark.parametrize(
    "cfg",
    [
        "yolov5n",
        pytest.param("yolov8n", marks=pytest.mark.slow),
        pytest.param("yolo26n", marks=pytest.mark.slow),
    ],
)
def test_engines_and_shares_change_no_bit(digits: Path, tmp_path: Path, cfg: str) -> None:
    alone = trained(digits, tmp_path, cfg, "plain", 1)
    for launcher, size in (("gloo", 2), ("mpi", 3), ("torchrun", 2)):
        assert trained(digits, tmp_path, cfg, launcher, size) == alone, (launcher, size)
