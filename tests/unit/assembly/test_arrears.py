"""Numbers of steps that are read later: nothing is lost by it, and nothing is different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from horovod_yolo.checkpoint.state import copied
from horovod_yolo.core.errors import StoppedError
from horovod_yolo.training.events import Callback, StepReport
from horovod_yolo.training.loop import Trainer
from horovod_yolo.training.underway import Step
from tests.helpers.runs import same_bits
from tests.helpers.short_runs import make_trainer, settings

BAD_STEP = 2


class Watching(Callback):
    """Keeps the reports, and each commit with how many reports came before it."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self.commits: list[tuple[int, dict[str, Any]]] = []

    def on_step(self, report: StepReport) -> None:
        self.reports.append(report)

    def on_commit(self, state: dict[str, Any], best: bool) -> None:
        self.commits.append((len(self.reports), copied(state)))


def watched(
    data: Path, arrears: int, state: dict[str, Any] | None = None, **flags: Any
) -> tuple[Trainer, Watching]:
    """Of four steps, as on a device: there the second, whose gradient is infinite, is found not to be one."""
    config = settings(data, "cpu", batch_size=7, epochs=1, noval=True, **flags)
    trainer, watching = make_trainer(config, state), Watching()
    trainer.arrears, trainer.callbacks = arrears, [watching]
    for group in trainer.stepper.optimizer.param_groups:
        group["fused"] = True
    weight = next(p for p in trainer.stepper.model.parameters())

    def spoilt(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (float("inf") if trainer.progress.step + 1 == BAD_STEP else 1.0)

    weight.register_hook(spoilt)  # type: ignore[no-untyped-call]
    return trainer, watching


def test_reports_and_commits_are_those_of_a_run_that_reads_at_once(digits: Path) -> None:
    (at_once, expected), *others = (watched(digits, arrears, commit_every=3) for arrears in (0, 2))
    at_once.fit()
    assert [report.step for report in expected.reports] == [1, 2, 3, 4]
    assert [report.step for report in expected.reports if report.result.skipped] == [BAD_STEP]
    assert at_once.ema.updates == 3 and at_once.progress.skipped == 1
    for trainer, found in others:
        trainer.fit()
        assert same_bits([vars(r) for r in found.reports], [vars(r) for r in expected.reports])
        assert [count for count, _ in found.commits] == [3, 4], (
            "a commit comes after the reports of its steps"
        )
        for (_, mine), (_, theirs) in zip(found.commits, expected.commits, strict=True):
            for key in ("model", "ema", "optimizer", "step", "epoch"):
                assert same_bits(mine[key], theirs[key]), key
            assert {**mine["progress"], "wall_s": 0} == {**theirs["progress"], "wall_s": 0}


def test_a_stop_leaves_no_step_unread_and_the_run_resumes_to_the_bit(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = watched(digits, 0)
    whole.fit()
    stopped, found = watched(digits, 1)
    original = stopped.stepper.step

    def step(*given: Any) -> Step:
        if stopped.progress.step == 2:
            stopped.stop.ask()
        return original(*given)

    monkeypatch.setattr(stopped.stepper, "step", step)
    with pytest.raises(StoppedError):
        stopped.fit()
    assert [report.step for report in found.reports] == [1, 2, 3]
    resumed, rest = watched(digits, 1, found.commits[-1][1])
    resumed.fit()
    assert [report.step for report in rest.reports] == [4]
    for key in ("model", "ema", "optimizer", "step"):
        assert same_bits(rest.commits[-1][1][key], expected.commits[-1][1][key]), key
