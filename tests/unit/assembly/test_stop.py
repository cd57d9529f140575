"""A request to stop: who leaves when, and what a stopped run keeps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.core.errors import StoppedError
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.events import StepReport
from horovod_yolo.training.loop import Trainer

from .test_run import COMM, Recorder, equal, settings


def test_a_request_ends_the_rank_at_once_only_where_nothing_is_lost() -> None:
    said: list[str] = []
    stop = StopRequest(said.append)
    assert not stop.asked
    stop.ask()
    assert stop.asked and said == ["before the first step; nothing was trained"]

    stop = StopRequest(said.append)
    stop.agree_from_here()
    stop.ask()
    assert stop.asked and len(said) == 1
    stop.alone_from_here("after the last step")
    assert said[1:] == ["after the last step"]
    stop.ask()
    assert said[2:] == ["after the last step"]


def test_without_a_listener_nobody_leaves() -> None:
    StopRequest().ask()


class Asking(Recorder):
    """Asks for a stop at a step, or when validation begins."""

    def __init__(self, stop: StopRequest, at_step: int) -> None:
        super().__init__()
        self._stop, self._at_step = stop, at_step

    def on_step(self, report: StepReport) -> None:
        if report.step == self._at_step:
            self._stop.ask()


def stoppable(
    data: Path, at_step: int, state: dict[str, Any] | None = None, **changes: Any
) -> tuple[Trainer, Recorder]:
    config, stop = settings(data, **changes), StopRequest()
    recorder = Asking(stop, at_step)
    parts = build_data(load_data_yaml(data), config, COMM)
    return build_trainer(config, parts, COMM, [recorder], state, stop), recorder


@pytest.mark.parametrize(
    ("at_step", "moment"),
    [(1, {"epoch": 0, "batch": 2}), (2, {"epoch": 0, "batch": 2}), (3, {"epoch": 1, "batch": 2})],
    ids=["next step", "validation", "last step"],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    digits: Path, at_step: int, moment: dict[str, int]
) -> None:
    whole, reference = stoppable(digits, at_step=0)
    whole.fit()
    trainer, stopped = stoppable(digits, at_step)
    with pytest.raises(StoppedError):
        trainer.fit()
    state = stopped.states[-1]
    assert state["sampler"] == moment
    resumed, recorder = stoppable(digits, 0, copy.deepcopy(state))
    resumed.fit()
    last, expected = recorder.states[-1], reference.states[-1]
    for key in ("model", "ema", "optimizer", "metrics", "early_stopping", "rng", "step", "epoch"):
        assert equal(last[key], expected[key]), key
    assert resumed.progress.wall_s > trainer.progress.wall_s > 0


def test_a_run_stopped_after_its_last_step_is_still_validated(digits: Path) -> None:
    trainer, stopped = stoppable(digits, at_step=1, max_steps=1)
    with pytest.raises(StoppedError):
        trainer.fit()
    resumed, recorder = stoppable(digits, 0, copy.deepcopy(stopped.states[-1]), max_steps=1)
    assert not resumed.done
    resumed.fit()
    assert resumed.done and "mAP50" in resumed.metrics
    assert recorder.states[-1]["step"] == 1
