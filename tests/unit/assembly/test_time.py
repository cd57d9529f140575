"""Whole runs with ``--time`` and a made-up clock, on which each step takes ten seconds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest

from horovod_yolo.assembly.replay import ReplayOptions, replay
from horovod_yolo.assembly.run import Run, start_run
from horovod_yolo.assembly.train import train
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.evaluation.evaluator import Evaluator
from horovod_yolo.training import time_plan
from horovod_yolo.training.events import Callback, PlanReport
from horovod_yolo.training.step import Stepper
from tests.helpers.runs import checkpoint, same_bits, steps
from tests.helpers.tiny_zoo import NAME, add_tiny
from tests.helpers.world import run_world

from .disturbed import job, lose_a_rank, require_resumed_as_whole
from .test_run import COMM, make_trainer, settings

STEP_S, VALIDATION_S = 10.0, 2.0
HOURS = 130 / 3600  # of epochs of 20 s, or 22 s with validation


@pytest.fixture(autouse=True)
def clock() -> Iterator[dict[str, float]]:
    """By rank; those of the others are slower than that of rank 0."""
    seconds: dict[str, float] = {}

    def taking(each_s: float, done: Any) -> Any:
        def take(self: Any, *given: Any) -> Any:
            name = current_thread().name
            slower = 1 + int(name.split()[1]) if name.startswith("rank ") else 1
            seconds[name] = seconds.get(name, 0.0) + each_s * slower
            return done(self, *given)

        return take

    with pytest.MonkeyPatch.context() as patch:
        add_tiny(patch)
        patch.setattr(time_plan, "_now", lambda: seconds.get(current_thread().name, 0.0))
        patch.setattr(Stepper, "step", taking(STEP_S, Stepper.step))
        patch.setattr(Evaluator, "run", taking(VALIDATION_S, Evaluator.run))
        yield seconds


def config_of(data: Path, **changes: Any) -> TrainConfig:
    """Two steps an epoch."""
    return settings(data, **{"cfg": NAME, "time": HOURS, "noplots": True, **changes})


class Plans(Callback):
    def __init__(self) -> None:
        self.reports: list[PlanReport] = []

    def on_plan(self, report: PlanReport) -> None:
        self.reports.append(report)


@pytest.mark.parametrize("cos_lr", [False, True])
def test_the_schedule_is_that_of_the_epochs_which_fit(digits: Path, tmp_path: Path, cos_lr: bool) -> None:
    """130 s are five epochs of 22 s and some: after the first the run is as one of five epochs."""
    result = run_world(1, job(config_of(digits, cos_lr=cos_lr, epochs=40), tmp_path / "timed"))[0]
    run_world(1, job(config_of(digits, cos_lr=cos_lr, epochs=5, time=0.0), tmp_path / "five"))
    timed, five = checkpoint(tmp_path / "timed"), checkpoint(tmp_path / "five")
    assert steps(tmp_path / "timed") == steps(tmp_path / "five")
    assert same_bits(timed["model"], five["model"])
    assert timed["config"]["epochs"] == 40, "as given, for whoever gives it again"
    assert (result["epochs"], result["steps"], result["exit"]) == (5, 10, 0)
    assert (result["time_used_s"], result["time_limit_s"]) == pytest.approx((110.0, 130.0))
    assert result["epochs_decided"] == [[1, 5]]
    assert result["bitwise"] == "no: --time"


def test_without_validation_there_is_one_at_the_end(digits: Path, tmp_path: Path) -> None:
    """Though the last epoch turns out to be the last when it is over, or did not turn out to be."""
    for seconds, epochs in ((130, 6), (15, 1), (50, 2)):
        config = config_of(digits, noval=True, time=seconds / 3600, epochs=1)
        result = run_world(1, job(config, tmp_path / str(seconds)))[0]
        assert result["epochs"] == epochs and "mAP50" in result["metrics"]


def test_ranks_go_by_the_clock_of_rank_0(digits: Path, tmp_path: Path) -> None:
    results = run_world(3, job(config_of(digits), tmp_path / "run"))
    assert [result["epochs"] for result in results] == [5] * 3
    assert [result["time_used_s"] for result in results] == [110.0] * 3


def test_a_lost_rank_0_leaves_its_plan(digits: Path, tmp_path: Path) -> None:
    """The next rank 0 is one by whose clock a step takes three times as long: the fourth, which it has."""
    config = config_of(digits, batch_size=13, commit_every=2, elastic=True, time=90 / 3600, epochs=2)
    lose_a_rank(config, tmp_path / "run", then=2)
    plan = checkpoint(tmp_path / "run")["time_plan"]
    assert plan["decisions"] == [[1, 2]] and plan["after"] == 2
    assert plan["used_s"] == 32.0 + 30.0 + 20.0 + 2.0


def test_images_stay_apart_in_the_last_of_the_epochs_which_fit(digits: Path) -> None:
    trainer, _ = make_trainer(config_of(digits, close_mosaic=2, epochs=2))
    plans = Plans()
    trainer.callbacks = [plans]
    seen: list[bool] = []
    whole = trainer.transform.__call__

    def told(key: Any, *others: Any) -> Any:
        seen.append(key.apart)
        return whole(key, *others)

    trainer.loader._here._sample_fn = told
    trainer.loader._dataloader.dataset._sample_fn = told  # type: ignore[union-attr]
    trainer.fit()
    assert [any(seen[28 * e : 28 * (e + 1)]) for e in range(5)] == [True, False, False, True, True]
    assert [(report.after, report.schedule.epochs) for report in plans.reports] == [(1, 5)]


@pytest.mark.parametrize("moment", [0, 1, 2, 4, 10])
def test_a_resumed_run_repeats_what_was_decided(digits: Path, moment: int) -> None:
    """From commits before the first decision, at it, and after it."""
    require_resumed_as_whole(config_of(digits, commit_every=1, close_mosaic=2), moment)


def test_the_time_goes_on_where_it_was(digits: Path) -> None:
    """Half of it is used when the run goes on."""
    trainer, recorder = make_trainer(config_of(digits, commit_every=1))
    trainer.fit()
    state = copy.deepcopy(recorder.states[6])
    assert (state["progress"]["step"], state["time_plan"]["used_s"]) == (5, 54.0)
    resumed, _ = make_trainer(replace(trainer.config), state=state)
    assert resumed.epochs == resumed.schedule.epochs == 5
    resumed.fit()
    assert resumed.plan is not None and resumed.plan.used_s == 110.0


def test_a_replay_repeats_what_was_decided(digits: Path, tmp_path: Path, clock: dict[str, float]) -> None:
    """Though it is slower: from the first epoch on, over the moments at which others were decided."""
    config = config_of(
        digits, save_period=1, noval=True, cos_lr=True, time=200 / 3600, cache_dir=str(tmp_path)
    )
    (tmp_path / "run" / "weights").mkdir(parents=True)
    whole = Stepper.step

    def slower_at_first(self: Any, *given: Any) -> Any:
        name = current_thread().name
        clock[name] = clock.get(name, 0.0) + 15.0 * (clock.get(name, 0.0) < 40)
        return whole(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "step", slower_at_first)
        run_world(1, lambda comm: train(Run(config, tmp_path / "run", None), comm))
    plan = checkpoint(tmp_path / "run")["time_plan"]
    assert len(plan["decisions"]) > 1
    options = ReplayOptions(str(tmp_path / "run"), 3, None, project=str(tmp_path / "replays"))
    assert run_world(1, lambda comm: replay(options, comm))[0].same


def test_the_same_line_goes_on_and_another_time_is_refused(digits: Path, tmp_path: Path) -> None:
    given = {"data": str(digits), "cfg": NAME, "imgsz": 64, "batch_size": 14, "workers": 0, "device": "cpu"}
    given |= {"time": HOURS, "epochs": 40, "max_steps": 3, "project": str(tmp_path), "noplots": True}
    given |= {"name": "run", "cache_dir": str(tmp_path)}
    run = start_run("auto", dict(given), COMM)
    assert train(run, COMM)["epochs"] == 1
    again = start_run("auto", dict(given), COMM)
    assert again.state is not None and again.state["time_plan"]["decisions"] == [[1, 5]]
    for hours in (1.0, 0.0):
        with pytest.raises(UserError, match=f"--time {hours} differs from the run's {HOURS}"):
            start_run("auto", {**given, "time": hours}, COMM)


@pytest.mark.parametrize("hours", [-1.0, float("nan"), float("inf")])
def test_no_time_at_all(digits: Path, hours: float) -> None:
    with pytest.raises(UserError, match=r"--time is .*: it must be hours|--time is .*it must be hours"):
        config_of(digits, time=hours)
