"""Python's keyword arguments: names first, others' names mean what they say, nothing is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from horovod_yolo.config.keywords import (
    portable,
    prediction_options,
    training_argv,
    validation_options,
)
from horovod_yolo.config.load import config_from_flags, train_parser
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError


def config_of(**given: Any) -> TrainConfig:
    parser = train_parser()
    argv = training_argv(parser, {"data": "d.yaml", "cfg": "yolov5n", **given})
    return config_from_flags(vars(parser.parse_strictly(argv)))


def test_keyword_arguments_mean_what_flags_mean() -> None:
    flags: dict[str, Any] = {"data": Path("d x.yaml"), "batch_size": 3, "cos_lr": True, "rect": False}
    flags |= {"freeze": (0, 1), "device": None, "project": "-p", "label_smoothing": 0.1}
    assert config_of(**flags) == TrainConfig(
        data="d x.yaml",
        cfg="yolov5n",
        batch_size=3,
        cos_lr=True,
        freeze=(0, 1),
        project="-p",
        label_smoothing=0.1,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"amp": False}, {"precision": "fp32"}),
        ({"amp": True}, {"precision": "auto"}),
        ({"val": False}, {"noval": True}),
        ({"val": True}, {"noval": False}),
        ({"plots": False}, {"noplots": True}),
        ({"plots": True}, {"noplots": False}),
        ({"imgsz": 96}, {"imgsz": 96}),
        ({"img_size": [96]}, {"imgsz": 96}),
        ({"batch": 7}, {"batch_size": 7}),
        ({"cache": True}, {"cache": "ram"}),
        ({"cache": False}, {"cache": "none"}),
        ({"cache": "disk"}, {"cache": "disk"}),
        ({"device": 0}, {"device": "0"}),
        ({"device": [0, 1]}, {"device": "0,1"}),
        ({"device": "cuda:1"}, {"device": "1"}),
        ({"device": torch.device("cpu")}, {"device": "cpu"}),
        ({"epochs": None, "hyp": None}, {"epochs": 300}),
        ({"freeze": 3}, {"freeze": (3,)}),
        ({"freeze": "backbone"}, {"freeze": ("backbone",)}),
        ({"freeze": ["model.0", "model.1.conv"]}, {"freeze": ("model.0", "model.1.conv")}),
        ({"close_mosaic": 4}, {"close_mosaic": 4}),
    ],
)
def test_others_names_and_forms(given: dict[str, Any], expected: dict[str, Any]) -> None:
    config = config_of(**given)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("value", [True, False, None, 0, "x"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_flag", "unknown argument no_such_flag"),
        ("epoch", "unknown argument epoch. did you mean epochs"),
        ("help", "unknown argument help"),
        ("mosaic", "mosaic is a hyperparameter. give hyp={'mosaic': ...}, or a file"),
    ],
)
def test_names_are_checked_before_values(name: str, message: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        config_of(**{name: value})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cos_lr": "yes"}, "cos_lr is 'yes'. it must be True or False"),
        ({"amp": 1}, "amp is 1. it must be True or False"),
        ({"epochs": True}, "epochs is True. give epochs its value"),
        ({"epochs": False}, "epochs is False. give epochs its value"),
        ({"batch": 4, "batch_size": 4}, "batch and batch_size are one thing. give one of them"),
        ({"val": True, "noval": True}, "val and noval are one thing. give one of them"),
        ({"imgsz": (64, 96)}, "two sizes (--imgsz 64 96) are not supported"),
        ({"batch": 0.5}, "0.5, a share of the memory, is not supported"),
        ({"device": True}, "device is True"),
        ({"device": -1}, "device -1 is not supported"),
        ({"device": "mps"}, "device mps is not supported"),
    ],
)
def test_values_that_no_flag_can_have(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of(**given)
    assert message in str(caught.value)


def test_options_of_validation_and_prediction() -> None:
    known = ("batch_size", "conf_thres", "device", "task")
    given = {"batch": 3, "conf": 0.1, "device": [0, 1], "split": "test", "batch_size": None}
    expected = {"batch_size": 3, "conf_thres": 0.1, "device": "0,1", "task": "test"}
    assert validation_options(given, known) == expected
    with pytest.raises(UserError, match=r"unknown argument batchsize\. did you mean batch"):
        validation_options({"batchsize": None}, known)
    with pytest.raises(UserError, match="augment is not supported"):
        validation_options({"augment": False}, known)
    assert prediction_options({"conf": 0.3, "iou": 0.5, "max_det": 7}) == {
        "conf_threshold": 0.3,
        "iou_threshold": 0.5,
        "max_detections": 7,
    }
    assert prediction_options({"rect": False, "batch": 4}) == {"rect": False, "batch": 4}
    assert prediction_options({"batch_size": 4, "rect": None}) == {"batch": 4}
    wrong_counts = ({"max_det": 0}, {"max_det": 1.5}, {"batch": 0}, {"batch": True}, {"rect": 1})
    for wrong in ({"conf": 3}, {"iou_thres": "x"}, {"stream": False}, *wrong_counts):
        with pytest.raises(UserError):
            prediction_options(wrong)


def test_what_other_processes_can_be_given() -> None:
    given = {"data": Path("d.yaml"), "device": [0, torch.device("cuda:1")], "freeze": (0, 1), "hyp": None}
    given |= {"lr": np.float32(0.5), "class_map": {"dog": "Hund"}, "cos_lr": True}
    portably = {"data": "d.yaml", "device": "0,1", "freeze": [0, 1], "hyp": None}
    assert portable(given) == portably | {"lr": 0.5, "class_map": {"dog": "Hund"}, "cos_lr": True}
    for value, words in ((len, "builtin_function_or_method"), ([torch.zeros(1)], "Tensor"), (b"", "bytes")):
        with pytest.raises(UserError, match=f"hyp is {words} .*, which other processes cannot be given"):
            portable({"hyp": value})
