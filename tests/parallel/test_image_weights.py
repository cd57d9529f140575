"""``--image-weights`` on real ranks: they draw what one draws, in the same order, so all bits are the same.

What validations do to the weights of the classes is in tests/unit/assembly/test_run_over_ranks.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import ranks
from tests.helpers.runs import checkpoint, sha256, steps

FLAGS = "--cfg yolov5n --img 64 --batch 13 --slices 4 --epochs 20 --max-steps 6 --noplots --noval --workers 0"


def train(data: Path, folder: Path, size: int, launcher: str, *flags: str) -> Path:
    run = folder / f"{launcher}{size}"
    words = ["train.py", "--data", data, "--project", folder, "--name", run.name, *FLAGS.split(), *flags]
    job = ranks.run(words, size, launcher)
    assert job.code == 0, job.output
    results = ranks.results(run)
    assert (results["world_size"], results["bitwise"]) == (size, "yes")
    return run


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(digits, tmp_path_factory.mktemp("alone"), 1, "plain", "--image-weights")


@pytest.mark.parametrize("launcher", ["gloo", "torchrun"])
def test_two_ranks_draw_what_one_draws(digits: Path, alone: Path, tmp_path: Path, launcher: str) -> None:
    two = train(digits, tmp_path, 2, launcher, "--image-weights")
    assert [row["images"] for row in steps(two)] == [13, 13, 2] * 2
    assert steps(two) == steps(alone)
    assert checkpoint(two)["image_weights"] == checkpoint(alone)["image_weights"]
    assert sha256(two) == sha256(alone)


def test_without_it_the_order_is_another(digits: Path, alone: Path, tmp_path: Path) -> None:
    """So equal steps tell of equal draws."""
    weighted, plain = steps(alone), steps(train(digits, tmp_path, 1, "plain"))
    assert all(a["box_loss"] != b["box_loss"] for a, b in zip(weighted, plain, strict=True))
