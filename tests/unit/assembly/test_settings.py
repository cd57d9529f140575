"""The model leads to its family, and that to hyperparameters and defaults of its own."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from horovod_yolo.assembly.build import build_schedule, build_training_data
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.looking import Looking, make_ready
from horovod_yolo.assembly.model import trained_model
from horovod_yolo.assembly.resuming import settings_here
from horovod_yolo.assembly.settings import given_hyp, settings_of, settings_of_state
from horovod_yolo.assembly.validate import ValOptions
from horovod_yolo.config.hyperparameters import Hyp
from horovod_yolo.config.keywords import training_argv
from horovod_yolo.config.load import train_parser
from horovod_yolo.config.schema import TrainConfig, to_dict
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families import zoo
from horovod_yolo.families.anchor_based.recipe import AnchorBasedHyp
from horovod_yolo.families.anchor_free.recipe import AnchorFreeHyp
from horovod_yolo.models.suppression import Thresholds
from tests.helpers.untrained import write_untrained

from .test_run import make_trainer

FAMILIES = Path(zoo.__file__).parent
OF_FAMILY = {"anchor_based": ("yolov5n", AnchorBasedHyp), "anchor_free": ("yolo11n", AnchorFreeHyp)}
FREE = ("yolov8n", "yolo11x", "yolo26n", "yolov5nu", "yolov3u")


def given(cfg: str, **flags: Any) -> dict[str, Any]:
    return {"data": "d.yaml", "cfg": cfg, **flags}


def file(folder: Path, text: str) -> str:
    (folder / "hyp.yaml").write_text(text)
    return str(folder / "hyp.yaml")


@pytest.mark.parametrize("cfg", ["yolov5n", "yolov5s6", "yolov3-tiny", "models/yolov5s.yaml"])
def test_yolov5_has_its_own_defaults(cfg: str) -> None:
    assert settings_of(given(cfg)) == TrainConfig(data="d.yaml", cfg=cfg, hyp=AnchorBasedHyp())
    recipe = zoo.recipe_of(cfg)
    assert (recipe.iou_of_validation, recipe.iou_of_prediction, recipe.fitness) == (0.6, 0.45, (0.1, 0.9))


@pytest.mark.parametrize("cfg", FREE)
def test_models_without_anchors_have_ultralytics_defaults(cfg: str) -> None:
    config = settings_of(given(cfg))
    assert config.hyp == AnchorFreeHyp(box=7.5, cls=0.5, dfl=1.5)
    assert (config.epochs, config.patience, config.batch_size) == (100, 100, 16)
    assert (config.optimizer, config.close_mosaic) == ("auto", 10)
    recipe = zoo.recipe_of(cfg)
    assert (recipe.iou_of_validation, recipe.iou_of_prediction, recipe.fitness) == (0.7, 0.7, (0.0, 1.0))


def test_flags_go_before_the_file_and_the_file_before_the_family(tmp_path: Path) -> None:
    path = file(tmp_path, "box: 5\nlr0: 0.02\n")
    config = settings_of(given("yolov8n", hyp=path, epochs=7, optimizer="SGD", close_mosaic=0))
    assert config.hyp == AnchorFreeHyp(box=5, lr0=0.02)
    assert (config.epochs, config.optimizer, config.close_mosaic) == (7, "SGD", 0)


@pytest.mark.parametrize(
    ("cfg", "text", "message"),
    [
        (
            "yolo11n",
            "lr0: 0.1\nobj: 1.0\nanchor_t: 4.0\n",
            "this is for models of the family anchor_based, this one is of anchor_free, which has no "
            "obj, anchor_t. use those of anchor_free, or leave --hyp out",
        ),
        (
            "yolov5n",
            "dfl: 1.5\n",
            "this is for models of the family anchor_free, this one is of anchor_based, which has no dfl",
        ),
        ("yolo11n", "obbj: 1.0\n", "unknown hyperparameter 'obbj'"),
        ("yolo11n", "dfl: -1.0\n", "hyperparameter dfl is -1.0. it must be 0 or more"),
    ],
)
def test_a_file_of_another_family_is_named_with_its_keys(
    tmp_path: Path, cfg: str, text: str, message: str
) -> None:
    path = file(tmp_path, text)
    with pytest.raises(UserError) as caught:
        settings_of(given(cfg, hyp=path))
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_hyperparameters_may_be_given_as_they_are() -> None:
    assert settings_of(given("yolov8n", hyp={"box": 5})).hyp == AnchorFreeHyp(box=5)
    for values, message in (
        ({"obj": 1.0}, "hyp: this is for models of the family anchor_based"),
        ({"bxo": 1.0}, r"hyp: unknown hyperparameter 'bxo'\. did you mean box"),
        ({"box": "5"}, "hyp: hyperparameter box is '5'"),
        ({3: 1.0}, "hyp: unknown hyperparameter 3"),
    ):
        with pytest.raises(UserError, match=message):
            settings_of(given("yolov8n", hyp=values))


def test_label_smoothing_is_for_losses_that_have_it() -> None:
    assert settings_of(given("yolov5n", label_smoothing=0.1)).label_smoothing == 0.1
    assert settings_of(given("yolov8n", label_smoothing=0.0)).label_smoothing == 0.0
    with pytest.raises(UserError, match=r"--label-smoothing 0.1: the loss of anchor_free models has none"):
        settings_of(given("yolov8n", label_smoothing=0.1))


@pytest.mark.parametrize("family", OF_FAMILY)
def test_the_file_beside_a_family_has_all_of_its_defaults(family: str) -> None:
    cfg, kind = OF_FAMILY[family]
    path = FAMILIES / family / "hyp.yaml"
    assert given_hyp(str(path), cfg) == kind()
    assert set(yaml.safe_load(path.read_text())) == {f.name for f in fields(kind)}


@pytest.mark.parametrize("cfg", ["yolov5n", "yolo26n"])
def test_a_checkpoint_knows_its_hyperparameters(cfg: str, tmp_path: Path) -> None:
    config = settings_of(given(cfg, epochs=3))
    config = replace(config, hyp=replace(config.hyp, box=0.3))  # type: ignore[call-arg]
    state = {"config": to_dict(config), "model_name": cfg, "scaler": {}}
    assert settings_of_state(state) == config
    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text("box: 0.3")
    other.write_text("box: 0.4")
    assert settings_here(state, {"hyp": str(same)})["hyp"] == to_dict(config)["hyp"]
    with pytest.raises(UserError, match="differs from the run's"):
        settings_here(state, {"hyp": str(other)})


def test_a_model_that_is_not_known_yet_needs_no_file() -> None:
    """Before the file of the weights is read; what is wrong with the flags is said at once."""
    with pytest.raises(UserError, match="--data is missing"):
        settings_of({"cfg": "yolo11n"})
    with pytest.raises(UserError, match="unknown model 'yolo99'"):
        settings_of(given("yolo99"))


@pytest.mark.parametrize(
    ("cfg", "epochs", "batches", "expected"),
    [
        ("yolov5n", 5, 10, 100),
        ("yolov5n", 5, 100, 300),
        ("yolov5n", 2, 100, 300),
        ("yolov8n", 5, 10, 30),
        ("yolov8n", 3, 10, 20),
        ("yolov8n", 1, 10, 0),
    ],
)
def test_length_of_the_warm_up(cfg: str, epochs: int, batches: int, expected: int) -> None:
    """YOLOv5's has at least 100 batches; Ultralytics' never reaches the last epoch."""
    config = settings_of(given(cfg, epochs=epochs))
    assert build_schedule(config, zoo.recipe_of(cfg), batches).warmup_batches == expected


def test_hyperparameters_that_are_no_flags() -> None:
    names = zoo.hyperparameters()
    assert {"lr0", "obj", "dfl"} <= names and "label_smoothing" not in names
    assert {f.name for f in fields(Hyp)} <= names


def test_how_images_are_mixed_follows_the_family_and_the_epoch(digits: Path, tmp_path: Path) -> None:
    """Also over ranks and after a resume, as it follows from the epoch alone."""
    flags = {"epochs": 12, "workers": 0, "imgsz": 64, "device": "cpu", "cache_dir": str(tmp_path)}
    for cfg, closed, own in (("yolov5n", None, False), ("yolov8n", 2, True)):
        config = settings_of({"data": str(digits), "cfg": cfg, **flags})
        data = build_data(load_data_yaml(digits), config, LocalCommunicator())
        with torch.device("meta"):
            model = zoo.build_model(cfg, 10)
        transform, sampler = build_training_data(config, data.train, LocalCommunicator(), model)
        params = transform.params
        assert (sampler.unmixed_from, params.turns_hue, params.mixes_singles) == (closed, own, own)
        apart = [sampler.rank_keys(epoch, 0)[0].apart for epoch in range(12)]
        assert apart == [False] * (closed or 12) + [True] * (12 - (closed or 12))
        rect = build_training_data(replace(config, rect=True), data.train, LocalCommunicator(), model)[
            0
        ].params
        assert rect.mosaic == rect.mixup == 0


@pytest.mark.parametrize(
    ("cfg", "in_validation", "in_prediction", "fitness"),
    [("yolov5n", 0.6, 0.45, (0.1, 0.9)), ("yolov8n", 0.7, 0.7, (0.0, 1.0))],
)
def test_overlap_and_fitness_reach_validation_and_prediction(
    digits: Path,
    tmp_path: Path,
    cfg: str,
    in_validation: float,
    in_prediction: float,
    fitness: tuple[float, float],
) -> None:
    flags = {"workers": 0, "imgsz": 64, "batch_size": 14, "device": "cpu", "cache_dir": str(tmp_path)}
    config = settings_of({"data": str(digits), "cfg": cfg, **flags})
    evaluator: Any = make_trainer(config)[0].evaluator
    assert (evaluator.thresholds.iou, evaluator.fitness_weights) == (in_validation, fitness)
    trained = trained_model(write_untrained(tmp_path / "best.pt", cfg))
    for given_iou, expected in ((None, in_prediction), (0.3, 0.3)):
        how = Looking(thresholds=Thresholds(), iou=given_iou)
        found: Any = make_ready(trained, torch.device("cpu"), how).find
        assert found.network.thresholds.iou == expected
    for options, expected in (
        (ValOptions(weights="w.pt"), 0.7),
        (ValOptions(weights="w.pt", iou_thres=0.2), 0.2),
    ):
        assert options.thresholds(0.7).iou == expected


def test_hyperparameters_of_any_family_are_no_keywords_and_say_where_they_go() -> None:
    for name in ("lr0", "dfl", "anchor_t"):
        with pytest.raises(UserError, match=f"{name} is a hyperparameter. give hyp=.*, or a file"):
            training_argv(train_parser(), {name: 1.0}, zoo.hyperparameters())
