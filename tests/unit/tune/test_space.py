"""Ranges of a search: the usual ones, and those of a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from horovod_yolo.config.hyperparameters import Hyp
from horovod_yolo.core.errors import UserError
from horovod_yolo.families import zoo
from horovod_yolo.tune.space import Range, default_space, load_space


@pytest.fixture(params=["yolov5n", "yolo11n"])
def hyp(request: pytest.FixtureRequest) -> Hyp:
    return zoo.recipe_of(request.param).hyp()


def test_usual_ranges_hold_the_defaults_and_only_what_is_possible(hyp: Hyp) -> None:
    space = default_space(hyp, auto_optimizer=False)
    values = asdict(hyp)
    assert {"lr0", "momentum", "box", "cls", "mosaic", "fliplr"} <= space.keys() <= values.keys()
    for name, found in space.items():
        assert values[name] in found, name
        for end in (found.low, found.high):
            type(hyp)(**{**values, name: end})


def test_a_familys_own_gains_are_searched() -> None:
    with_anchors = default_space(zoo.recipe_of("yolov5n").hyp(), auto_optimizer=False)
    without = default_space(zoo.recipe_of("yolo11n").hyp(), auto_optimizer=False)
    assert "obj" in with_anchors and "dfl" not in with_anchors
    assert "dfl" in without and "obj" not in without
    assert with_anchors["box"] != without["box"]


def test_what_auto_chooses_is_not_searched(hyp: Hyp) -> None:
    space = default_space(hyp, auto_optimizer=True)
    assert not {"lr0", "momentum", "warmup_bias_lr"} & space.keys() and "weight_decay" in space


def test_a_file_of_ranges(tmp_path: Path, hyp: Hyp) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "lr0: {low: 1.0e-3, high: 0.1, log: true}\nmosaic: {choices: [0, 1]}\nscale: {low: 0, high: 0.5}\n"
    )
    assert load_space(file, hyp, auto_optimizer=False) == {
        "lr0": Range(0.001, 0.1, log=True),
        "mosaic": Range(choices=(0.0, 1.0)),
        "scale": Range(0.0, 0.5),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: {low: 0.1, high: 1}", "unknown hyperparameter 'lr'. did you mean"),
        ("lr0: 0.1", "lr0 is 0.1. write lr0: {low"),
        ("lr0: {low: 0.1}", "lr0 has no high"),
        ("lr0: {lo: 0.1, high: 1}", "lr0 has 'lo'. did you mean low"),
        ("lr0: {low: 1e-4, high: 1}", "low of lr0 is '1e-4'. it must be a number, in YAML 1.0e-2"),
        ("lr0: {low: .inf, high: 1}", "low of lr0 is inf"),
        ("lr0: {low: true, high: 1}", "low of lr0 is True"),
        ("lr0: {low: 0.2, high: 0.1}", "low of lr0 is 0.2 and high is 0.1"),
        ("lr0: {low: 0.1, high: 0.2, log: 1}", "log of lr0 is 1. it must be true or false"),
        ("scale: {low: 0, high: 0.2, log: true}", "low of scale is 0 with log"),
        ("lr0: {low: 0, high: 0.2}", "hyperparameter lr0 is 0.0. it must be above 0"),
        ("mosaic: {low: 0, high: 2}", "hyperparameter mosaic is 2.0. it must be between 0 and 1"),
        ("mosaic: {choices: [0, 2]}", "hyperparameter mosaic is 2.0"),
        ("mosaic: {choices: [1]}", "choices of mosaic are [1]. write two or more"),
        ("mosaic: {choices: [1, 1.0]}", "write each of them once"),
        ("mosaic: {choices: [0, 1], low: 0}", "mosaic has choices and a range"),
        ("{}", "no hyperparameter is in it"),
    ],
)
def test_mistakes_in_a_file_are_one_line_that_names_it(
    tmp_path: Path, hyp: Hyp, text: str, words: str
) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_space(file, hyp, auto_optimizer=False)
    assert str(file) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_searches_what_auto_chooses(tmp_path: Path, hyp: Hyp) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("momentum: {low: 0.5, high: 0.9}")
    with pytest.raises(UserError, match="momentum is chosen by --optimizer auto"):
        load_space(file, hyp, auto_optimizer=True)
