"""``--optimizer auto``: the rule, and that a run keeps what it began with."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.optim import SGD, AdamW

from horovod_yolo.assembly.auto_optimizer import KEPT, kept_choice, with_optimizer
from horovod_yolo.assembly.resuming import settings_here
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.config.schema import TrainConfig

from .test_run import make_trainer, settings

pytestmark = pytest.mark.usefixtures("tiny")


def config_of(epochs: int, **flags: Any) -> TrainConfig:
    return settings_of({"data": "d.yaml", "cfg": "yolov8n", "epochs": epochs, **flags})


def rates(config: TrainConfig) -> tuple[float, float, float]:
    return config.hyp.lr0, config.hyp.momentum, config.hyp.warmup_bias_lr


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "classes", "name", "expected"),
    [
        (6400, 16, 100, 10, "AdamW", (0.000714, 0.9, 0.0)),  # 100 steps of 64 images an epoch
        (6400, 16, 100, 80, "AdamW", (0.000119, 0.9, 0.0)),
        (6400, 16, 101, 10, "MuSGD", (0.01, 0.937, 0.0)),
        (6401, 16, 100, 10, "MuSGD", (0.01, 0.937, 0.0)),
        (6401, 128, 100, 10, "AdamW", (0.000714, 0.9, 0.0)),
    ],
)
def test_the_length_of_the_run_and_the_classes_decide(
    images: int, batch: int, epochs: int, classes: int, name: str, expected: tuple[float, float, float]
) -> None:
    chosen = with_optimizer(config_of(epochs, batch_size=batch), images, classes, None)
    assert (chosen.optimizer, rates(chosen)) == (name, expected)


def test_without_a_warm_up_musgd_keeps_its_own_momentum() -> None:
    config = config_of(500)
    config = replace(config, hyp=replace(config.hyp, warmup_epochs=0))
    assert rates(with_optimizer(config, 6400, 10, None)) == (0.01, 0.9, 0.0)


def test_what_counts_and_what_does_not_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = config_of(2)
    config = replace(config, hyp=replace(config.hyp, lr0=0.5, momentum=0.1))
    assert rates(with_optimizer(config, 64, 10, None)) == (0.000714, 0.9, 0.0)
    assert (
        "--optimizer auto: AdamW with lr0 0.000714 and momentum 0.9 for 2 steps and 10 classes" in caplog.text
    )
    assert "not used are the hyperparameters lr0, momentum, warmup_bias_lr" in caplog.text


def test_a_named_optimizer_stays() -> None:
    config = config_of(2, optimizer="SGD")
    assert with_optimizer(config, 64, 10, None) is config
    assert kept_choice(config, config) == {}


def test_a_resumed_run_keeps_what_it_began_with(digits: Path, tmp_path: Path) -> None:
    """Also where the data has changed since, or the same command line is given again."""
    config = settings(digits, cfg="tiny8", cache_dir=str(tmp_path), commit_every=1)
    trainer, seen = make_trainer(config)
    trainer.fit()
    state = copy.deepcopy(seen.states[0])
    assert isinstance(trainer.stepper.optimizer, AdamW) and trainer.schedule.lr0 == 0.000714
    assert state["config"]["optimizer"] == "auto" and state["config"]["hyp"]["lr0"] == 0.01
    assert settings_here(state, {"optimizer": "auto"})["optimizer"] == "auto"
    state[KEPT]["lr0"] = 0.25
    resumed, _ = make_trainer(config, state=state)
    assert resumed.schedule.lr0 == 0.25 and resumed.state()[KEPT] == state[KEPT]


def test_yolov5_trains_with_sgd_unless_it_is_asked(digits: Path, tmp_path: Path) -> None:
    optimizers = [
        type(make_trainer(settings(digits, cache_dir=str(tmp_path), **flags))[0].stepper.optimizer)
        for flags in ({}, {"optimizer": "auto"})
    ]
    assert [kind.__name__ for kind in optimizers] == [SGD.__name__, AdamW.__name__]
