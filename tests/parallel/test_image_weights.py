"""``--image-weights`` on real ranks: they draw what one draws, in the same order, so all bits are the same.

A validation sets the weights of the second epoch. It finds something with a network that has learnt nothing,
for each object fills its image, as boxes of the coarsest scale do. How such a run is resumed is in
tests/unit/assembly/test_run_over_ranks.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers import ranks
from tests.helpers.runs import checkpoint, sha256, steps

FLAGS = "--cfg yolov5n --img 64 --batch 13 --slices 4 --epochs 20 --max-steps 6 --noplots --workers 0"
CLASSES = (0, 0, 0, 0, 1, 1, 2)  # of seven images each: some are rare


def train(data: Path, folder: Path, size: int, launcher: str, *flags: str) -> Path:
    run = folder / f"{launcher}{size}"
    words = ["train.py", "--data", data, "--project", folder, "--name", run.name, *FLAGS.split(), *flags]
    job = ranks.run(words, size, launcher)
    assert job.code == 0, job.output
    results = ranks.results(run)
    assert (results["world_size"], results["bitwise"]) == (size, "yes")
    return run


def box_losses(run: Path) -> list[float]:
    return [row["box_loss"] for row in steps(run)]


@pytest.fixture(scope="module")
def filled(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data.yaml`` of three classes, with one object in each image, as large as that."""
    folder = tmp_path_factory.mktemp("data") / "filled"
    shutil.copytree(digits.parent, folder)
    for number, label in enumerate(sorted((folder / "labels").rglob("*.txt"))):
        label.write_text(f"{CLASSES[number % len(CLASSES)]} 0.5 0.5 1 1\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [often, seldom, rare]\n")
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def alone(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(filled, tmp_path_factory.mktemp("alone"), 1, "plain", "--image-weights")


@pytest.mark.parametrize("launcher", ["gloo", "torchrun"])
def test_two_ranks_draw_what_one_draws(filled: Path, alone: Path, tmp_path: Path, launcher: str) -> None:
    two = train(filled, tmp_path, 2, launcher, "--image-weights")
    assert [row["images"] for row in steps(two)] == [13, 13, 2] * 2
    assert steps(two) == steps(alone)
    assert checkpoint(two)["image_weights"] == checkpoint(alone)["image_weights"]
    assert sha256(two) == sha256(alone)


def test_the_weights_of_the_second_epoch_are_those_of_a_validation(
    filled: Path, alone: Path, tmp_path: Path
) -> None:
    """Without validation the first epoch is the same, and the second one is drawn otherwise."""
    unscored = train(filled, tmp_path, 1, "plain", "--image-weights", "--noval")
    losses, others = box_losses(alone), box_losses(unscored)
    assert losses[:3] == others[:3] and not set(losses[3:]) & set(others[3:])


def test_without_it_the_order_is_another(filled: Path, alone: Path, tmp_path: Path) -> None:
    """So equal steps tell of equal draws."""
    plain = train(filled, tmp_path, 1, "plain")
    assert not set(box_losses(alone)) & set(box_losses(plain))
