"""Whole runs over ranks in one process: the real data, loop, validation, checkpoints and files.

28 images in batches of 13: no world size divides them, and the last batch holds two images, so that two
of four ranks have an empty slice. Half of the images have no box, and the augmentations are on, so some
ranks have images but not one object.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.run import new_run, resumed_run
from horovod_yolo.assembly.train import train
from horovod_yolo.assembly.validate import ValOptions, validate
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.augment import AugmentParams, augment
from horovod_yolo.data.cache import ImageReader
from horovod_yolo.data.sampler import StepSampler
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.metrics.scores import Evaluation, metrics_of
from horovod_yolo.training import loop
from horovod_yolo.training.balance import Balance, best_shares
from tests.helpers.runs import (
    checkpoint,
    largest_loss_difference,
    same_bits,
    sha256,
    steps,
    weight_difference,
)
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import run_world
from tests.parallel.test_vanishing_data import break_images

from .disturbed import job, lose_a_rank, require_resumed_as_whole, require_stopped_as_whole
from .test_run import COMM, settings

pytestmark = pytest.mark.usefixtures("tiny")

NOTE = Balance.note
AUGMENTED = "mosaic: 0.4\nmixup: 0.3\ndegrees: 5.0\nflipud: 0.2\n"


@pytest.fixture(scope="module")
def half_empty(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half_empty") / "digits"
    shutil.copytree(digits.parent, folder)
    for label in sorted((folder / "labels" / "train").glob("*.txt"))[::2]:
        label.write_text("")
    return folder / "data.yaml"


def config_of(data: Path, folder: Path, **changes: Any) -> TrainConfig:
    """In float64, where YOLOv5's own rates leave room for the growth of a rounding error."""
    (folder / "hyp.yaml").write_text(AUGMENTED)
    given = {"cfg": NAME, "batch_size": 13, "precision": "fp64", "sync_bn": True, "noplots": True, **changes}
    return settings(data, hyp=str(folder / "hyp.yaml"), cache_dir=str(folder / "cache"), **given)


def test_the_data_has_slices_without_objects_and_without_images(half_empty: Path, tmp_path: Path) -> None:
    index = build_data(load_data_yaml(half_empty), config_of(half_empty, tmp_path), COMM).train
    load = ImageReader(index, largest=(64, 64))
    params = AugmentParams(mosaic=0.4, mixup=0.3, degrees=5.0, flipud=0.2)
    boxes_of_slices = []
    for rank in range(4):
        plan = StepSampler(len(index), 13, rank, 4, seed=0, shuffle=True, shape=(64, 64))
        for batch in range(plan.batches_per_epoch):
            keys = plan.rank_keys(0, batch)
            boxes = sum(len(augment(key, index, load, params, 0).classes) for key in keys)
            boxes_of_slices.append((len(keys), boxes))
    assert sum(images == 0 for images, _ in boxes_of_slices) == 2
    assert sum(images > 0 and boxes == 0 for images, boxes in boxes_of_slices) >= 1


@pytest.fixture(scope="module")
def alone(half_empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of one rank."""
    folder = tmp_path_factory.mktemp("alone")
    run_world(1, job(config_of(half_empty, folder), folder / "run"))
    return folder / "run"


@pytest.mark.parametrize("size", [2, 4])
def test_several_ranks_agree_with_one(half_empty: Path, alone: Path, tmp_path: Path, size: int) -> None:
    results = run_world(size, job(config_of(half_empty, tmp_path), tmp_path / "run"))
    assert [row["images"] for row in steps(tmp_path / "run")] == [13, 13, 2] * 2
    assert largest_loss_difference(tmp_path / "run", alone) < 1e-9
    assert weight_difference(tmp_path / "run", alone) < 1e-9
    expected = checkpoint(alone)["metrics"]["val_loss"]
    assert [result["metrics"]["val_loss"] for result in results] == [pytest.approx(expected, rel=1e-5)] * size
    assert [result["world_size"] for result in results] == [size] * size
    for result in results:
        assert result["bound_by"] == max(result["time_shares"], key=result["time_shares"].get)
        assert sum(result["time_shares"].values()) == pytest.approx(1)
        assert result["advice"].startswith(f"bound by {result['bound_by']} (")


def test_so_they_do_where_slices_go_through_in_as_many_passes(half_empty: Path, tmp_path: Path) -> None:
    """Batch norm sees the same images in each of them, whatever the number of ranks."""
    for size, images in ((1, 4), (2, 2)):
        config = config_of(half_empty, tmp_path, micro_batch=images, epochs=1)
        run_world(size, job(config, tmp_path / f"of {size}"))
        assert checkpoint(tmp_path / f"of {size}")["passes"] == 4
    assert largest_loss_difference(tmp_path / "of 1", tmp_path / "of 2") < 1e-9
    assert weight_difference(tmp_path / "of 1", tmp_path / "of 2") < 1e-9


def test_stopped_and_resumed_ends_with_the_bits_of_the_undisturbed_run(digits: Path, tmp_path: Path) -> None:
    """Without synchronised batch norm, so that each of three ranks has statistics of its own."""
    config = config_of(digits, tmp_path, precision="fp32", sync_bn=False, epochs=2)
    require_stopped_as_whole(config, tmp_path)


def test_broken_images_are_replaced_alike_on_any_number_of_ranks(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As many as may be: a tenth of 28, and one of 7."""
    shutil.copytree(digits.parent, tmp_path / "digits")
    config = config_of(tmp_path / "digits" / "data.yaml", tmp_path)
    broken = break_images(Path(config.data), tmp_path / "cache")
    results = []
    for size in (1, 3):
        caplog.clear()
        results += run_world(size, job(config, tmp_path / str(size)))[:1]
        assert [row["images"] for row in steps(tmp_path / str(size))] == [13, 13, 2] * 2, "none is missing"
        for path in broken:
            said = [r.threadName for r in caplog.records if f"image lost: {path}: " in r.getMessage()]
            assert 1 <= len(said) == len(set(said)), "each rank that meets it says so once"
    assert largest_loss_difference(tmp_path / "3", tmp_path / "1") < 1e-9
    assert weight_difference(tmp_path / "3", tmp_path / "1") < 1e-9
    losses = [result["metrics"]["val_loss"] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_survivors_go_on_from_the_last_commit_and_end_as_the_undisturbed_run(
    half_empty: Path, alone: Path, tmp_path: Path
) -> None:
    """Newcomers take part in the world of four that follows."""
    config = config_of(half_empty, tmp_path, commit_every=2, elastic=True)
    lose_a_rank(config, tmp_path / "run", then=4)
    assert [row["images"] for row in steps(tmp_path / "run")] == [13, 13, 2] * 2
    assert largest_loss_difference(tmp_path / "run", alone) < 1e-9
    assert weight_difference(tmp_path / "run", alone) < 1e-9


@pytest.fixture
def found_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations say that the classes are found the better the higher their number: so weights change."""

    def as_if(evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
        metrics = metrics_of(evaluation, names)
        for each in metrics["per_class"]:
            each |= {"mAP50-95": 0.05 + 0.09 * each["class"], "instances": 1}
        return metrics

    monkeypatch.setattr(loop, "metrics_of", as_if)


@pytest.mark.usefixtures("found_in_part")
def test_image_weights_are_the_same_on_one_two_and_four_ranks(digits: Path, tmp_path: Path) -> None:
    """The same draws in the second epoch too, whose weights a validation has set: the same bits."""
    runs = []
    for size in (1, 2, 4):
        flags = {"precision": "fp32", "sync_bn": False, "image_weights": True, "slices": 4, "epochs": 2}
        run_world(size, job(config_of(digits, tmp_path, **flags), tmp_path / str(size)))
        runs.append(checkpoint(tmp_path / str(size)))
    assert runs[0]["image_weights"]["of_classes"][0] > runs[0]["image_weights"]["of_classes"][9]
    for other in runs[1:]:
        assert same_bits(other["model"], runs[0]["model"])
        assert other["image_weights"] == runs[0]["image_weights"]
    assert steps(tmp_path / "4") == steps(tmp_path / "2") == steps(tmp_path / "1")


@pytest.mark.usefixtures("found_in_part")
def test_image_weights_are_resumed_exactly(digits: Path, tmp_path: Path) -> None:
    """From a commit in the second epoch, whose draws the checkpoint's weights make."""
    config = config_of(digits, tmp_path, precision="fp32", sync_bn=False, image_weights=True, commit_every=1)
    require_resumed_as_whole(config, moment=5)


def test_a_part_of_the_images_and_one_class(digits: Path, tmp_path: Path) -> None:
    """The best epoch is that of the least validation loss; the model is scored on the set of all classes."""
    flags = {"fraction": 0.5, "single_cls": True, "best_by": "val_loss", "epochs": 3, "precision": "fp32"}
    config = config_of(digits, tmp_path, **flags)
    run_world(2, job(config, tmp_path / "run"))
    state = checkpoint(tmp_path / "run")
    assert state["names"] == ["item"] and state["progress"]["images"] < 3 * 28
    with (tmp_path / "run/results.csv").open(newline="") as file:
        rows = [{name.strip(): value for name, value in row.items()} for row in csv.DictReader(file)]
    losses = [sum(float(row[name]) for name in row if name.startswith("val/")) for row in rows]
    assert state["early_stopping"]["best_fitness"] == pytest.approx(-min(losses), rel=1e-4)
    assert state["early_stopping"]["best_epoch"] == losses.index(min(losses))
    again = resumed_run(str(tmp_path / "run"), {}, COMM)
    assert train(again, COMM)["steps"] == state["step"]
    _, names = validate(ValOptions(weights=str(tmp_path / "run/weights/best.pt"), workers=0), COMM)
    assert names == ("item",)


def test_an_own_pipeline_goes_with_the_run(digits: Path, tmp_path: Path) -> None:
    """Resumed without its file, which another one may not replace."""
    pipeline = {
        "__class_fullname__": "Compose",
        "transforms": [{"__class_fullname__": "GaussNoise", "p": 0.8}],
    }
    file = tmp_path / "pipeline.json"
    file.write_text(json.dumps({"transform": pipeline}))
    flags = {"precision": "fp32", "sync_bn": False, "epochs": 1, "project": str(tmp_path)}
    run = new_run(config_of(digits, tmp_path, albumentations=str(file), **flags), COMM)
    file.write_text(json.dumps({"transform": {**pipeline, "p": 0.5}}))
    require_resumed_as_whole(replace(run.config, commit_every=1), moment=1)
    train(run, COMM)
    with pytest.raises(UserError, match="differs from the run's"):
        resumed_run(str(run.folder), {"albumentations": str(file)}, COMM)


SPEEDS = (3.0, 1.0, 1.0)  # seconds that a slice takes the ranks


def took_as_long(balance: Balance, seconds: float, pixels: float) -> None:
    """A `Balance.note` of ranks of which the first is slowed to a third."""
    NOTE(balance, SPEEDS[balance.rank] * pixels / balance.pixels, pixels)


@pytest.mark.parametrize("size", [2, 3])
def test_slices_follow_measured_time_and_no_bit_changes(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Over windows of several batches, in which the shares stay; validation shares its slices likewise."""
    (tmp_path / "hyp.yaml").write_text("nbs: 14\n")
    flags = {"batch_size": 7, "slices": 7, "imgsz": 96, "multi_scale": True, "epochs": 5, "noval": True}
    config = settings(digits, cfg=NAME, hyp=str(tmp_path / "hyp.yaml"), noplots=True, **flags)
    run_world(1, job(config, tmp_path / "alone"))
    monkeypatch.setattr(Balance, "note", took_as_long)
    results = run_world(size, job(replace(config, balance="auto"), tmp_path / "run"))
    for result in results:
        assert result["slices_of_ranks"] == list(best_shares(7, SPEEDS[:size]))
        assert result["seconds_a_slice"] == pytest.approx(SPEEDS[:size])
        assert result["times_shared_anew"] == 1
    assert sha256(tmp_path / "run") == sha256(tmp_path / "alone")
