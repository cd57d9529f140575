"""A resumed run: the settings that may change with the place, and data that must be what it was."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.data import Data
from horovod_yolo.assembly.data_state import data_state, require_same_data
from horovod_yolo.assembly.labels import label_rules
from horovod_yolo.assembly.resuming import settings_here
from horovod_yolo.config.schema import TrainConfig, to_dict
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats.rules import CURRENT, FIRST
from horovod_yolo.data.spec import load_data_yaml
from tests.helpers.scanned import annotations_of


def state_of(scaler: bool = False, **settings: Any) -> dict[str, Any]:
    config = to_dict(TrainConfig(data="/data/a.yaml", cfg="yolov5n", **settings))
    return {"config": config, "scaler": {"scale": 1.0} if scaler else {}}


def test_the_place_may_change_and_the_run_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = settings_here(state_of(), {"data": "b.yaml", "device": "cpu", "workers": 1})
    assert (found["data"], found["device"], found["workers"]) == (f"{tmp_path}/b.yaml", "cpu", 1)
    with pytest.raises(UserError, match="--epochs 5 differs from the run's 300"):
        settings_here(state_of(), {"epochs": 5})


@pytest.mark.parametrize(
    ("ran_with", "given", "other"),
    [
        ({"slices": 4}, {"slices": 2}, "--slices 2 differs from the run's 4"),
        ({"slices": 1}, {"slices": 2}, "--slices 2 differs from the run's 1"),
        ({"threads": 1}, {"threads": 2}, "--threads 2 differs from the run's 1"),
        ({"sums": "exact"}, {"sums": "float"}, "--sums float differs from the run's exact"),
        (
            {"portable_bits": True},
            {"portable_bits": False},
            "--portable-bits False differs from the run's True",
        ),
    ],
)
def test_what_bits_depend_on_stays(ran_with: dict[str, Any], given: dict[str, Any], other: str) -> None:
    assert settings_here(state_of(**ran_with), ran_with).items() >= ran_with.items()
    with pytest.raises(UserError, match=other):
        settings_here(state_of(**ran_with), given)


def test_a_class_map_may_be_added_to_where_the_data_has_other_names_now() -> None:
    state = state_of(class_map=(("a", "b"), ("c", "d")))
    assert settings_here(state, {})["class_map"] == {"a": "b", "c": "d"}
    added = settings_here(state, {"class_map": (("c", "e"), ("f", "g"))})
    assert added["class_map"] == {"a": "b", "c": "e", "f": "g"}


@pytest.mark.parametrize(
    ("ran_with", "given", "expected"),
    [
        (0, {}, 0),
        (6, {}, 6),
        (6, {"micro_batch": "auto"}, 6),
        (0, {"micro_batch": "auto"}, "auto"),
        (6, {"micro_batch": 2}, 2),
    ],
)
def test_the_size_of_a_pass_is_kept_unless_another_one_is_given(
    ran_with: int, given: dict[str, Any], expected: int | str
) -> None:
    state = state_of(micro_batch=ran_with, batch_size=64)
    assert settings_here(state, given)["micro_batch"] == expected
    assert settings_here(state, {**given, "batch_size": "auto"})["batch_size"] == 64


def test_a_batch_of_auto_is_the_nominal_one_and_no_other() -> None:
    with pytest.raises(UserError, match="--batch-size auto differs from the run's 16"):
        settings_here(state_of(), {"batch_size": "auto"})


def test_a_run_keeps_its_word_that_data_changed_for_one_job_only() -> None:
    state = state_of(data_changed=True)
    assert settings_here(state, {})["data_changed"] is False
    assert settings_here(state, {"data_changed": True})["data_changed"] is True


@pytest.mark.parametrize(
    ("state", "precision"),
    [
        (state_of(), "fp32"),
        (state_of(scaler=True), "fp16"),
        ({**state_of(), "precision": "bf16"}, "bf16"),
        (state_of(precision="bf16"), "bf16"),
    ],
)
def test_auto_is_what_it_stood_for_when_the_run_began(state: dict[str, Any], precision: str) -> None:
    for given in ({}, {"precision": "auto"}, {"precision": precision}):
        assert settings_here(state, given)["precision"] == precision
    with pytest.raises(UserError, match="--precision tf32 differs"):
        settings_here(state, {"precision": "tf32"})


def copy_of(digits: Path, folder: Path) -> Path:
    shutil.copytree(digits.parent, folder)
    return folder / digits.name


def state_in(data: Path) -> dict[str, Any]:
    spec = load_data_yaml(data)
    return data_state(Data(spec, annotations_of(spec, "train"), annotations_of(spec, "val")))


def images(data: Path) -> list[Path]:
    return sorted((data.parent / "images/train").iterdir())


def label_of(image: Path) -> Path:
    return image.parents[2] / "labels/train" / f"{image.stem}.txt"


def test_moved_data_is_the_same(digits: Path, tmp_path: Path) -> None:
    require_same_data(state_in(digits), state_in(copy_of(digits, tmp_path / "moved")), changed=False)
    require_same_data({}, state_in(digits), changed=False)  # a checkpoint of the first release says nothing


def test_images_lost_within_a_tenth_are_no_change(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = copy_of(digits, tmp_path / "data")
    before = state_in(data)
    gone = images(data)[:3]
    for image in gone[:2]:
        image.unlink()
    with caplog.at_level(logging.WARNING):
        kept = require_same_data(before, state_in(data), changed=False)
    assert kept["train"] is before["train"], "or a second tenth could go, and none come back"
    assert "of 28 images 2 are gone or changed, 0 are new; the run goes on without them" in caplog.text
    gone[2].unlink()
    with pytest.raises(UserError, match="train: of 28 images 3 are gone or changed, 0 are new"):
        require_same_data(before, state_in(data), changed=False)


def test_other_data_needs_a_word(digits: Path, tmp_path: Path) -> None:
    data = copy_of(digits, tmp_path / "data")
    before = state_in(data)
    image = next(image for image in images(data) if label_of(image).read_text())
    shutil.copy(image, image.with_name("new" + image.suffix))
    shutil.copy(label_of(image), label_of(image.with_name("new.x")))
    with pytest.raises(UserError, match=r"0 are gone or changed, 1 are new.*--data-changed"):
        require_same_data(before, state_in(data), changed=False)
    require_same_data(before, state_in(data), changed=True)
    image.with_name("new" + image.suffix).unlink()
    rows = label_of(image).read_text().splitlines()
    label_of(image).write_text("\n".join(["9" + row[1:] if row[0] != "9" else "8" + row[1:] for row in rows]))
    with pytest.raises(UserError, match="1 are gone or changed, 1 are new"):
        require_same_data(before, state_in(data), changed=False)


def test_other_crowds_or_areas_are_a_change(digits: Path) -> None:
    before = state_in(digits)
    after = {**before, "train": {**before["train"], "digest": "another"}}
    with pytest.raises(UserError, match="the images and boxes are the same; their ids, areas or crowds"):
        require_same_data(before, after, changed=False)
    assert require_same_data(before, after, changed=True)["train"] is after["train"]


def test_a_run_of_the_first_release_keeps_its_rules(caplog: pytest.LogCaptureFixture) -> None:
    config = TrainConfig(data="a.yaml", cfg="yolov5n")
    assert label_rules(config, None).version == CURRENT
    assert label_rules(config, {"data": {"rules": CURRENT}}).version == CURRENT
    assert caplog.text == ""
    old = label_rules(config, {})
    assert old.version == FIRST and old.skip_bad_classes and "older rules" in caplog.text
