"""Runs over ranks in one process that are stopped, resumed, or lose a rank."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.elastic import elastic_run
from horovod_yolo.assembly.run import Run, resumed_run
from horovod_yolo.assembly.train import train
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import StoppedError
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.step import Stepper
from tests.helpers.runs import checkpoint, same_bits, steps
from tests.helpers.world import RankLostError, run_world, world_outcomes

from .test_run import make_trainer

OF_A_RUN = ("model", "ema", "optimizer", "metrics", "step", "epoch")
COMPARED = (*OF_A_RUN, "early_stopping", "sampler")


def job(config: TrainConfig, folder: Path) -> Callable[[Communicator], dict[str, Any]]:
    """What each rank does to make a new run in ``folder``."""
    (folder / "weights").mkdir(parents=True)
    return lambda comm: train(Run(config, folder, None), comm)


def require_same_bits(one: dict[str, Any], other: dict[str, Any], parts: tuple[str, ...] = COMPARED) -> None:
    """Two checkpoints are of the same moment of the same run."""
    for part in parts:
        assert same_bits(one[part], other[part]), part


def require_resumed_as_whole(config: TrainConfig, moment: int) -> None:
    """One rank goes on from a commit of a run, and ends as that run did."""
    trainer, whole = make_trainer(config)
    trainer.fit()
    resumed, again = make_trainer(config, state=copy.deepcopy(whole.states[moment]))
    resumed.fit()
    require_same_bits(again.states[-1], whole.states[-1], OF_A_RUN)
    assert again.epochs[-1].losses == whole.epochs[-1].losses


def require_stopped_as_whole(config: TrainConfig, folder: Path) -> None:
    """Three ranks, of which one is asked to stop in its second step, go on and end as those of ``whole``."""
    run_world(3, job(config, folder / "whole"))
    request = StopRequest()
    (folder / "stopped" / "weights").mkdir(parents=True)

    def stopped(comm: Communicator) -> None:
        train(Run(config, folder / "stopped", None), comm, request if comm.rank == 1 else StopRequest())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "step", _before_step(2, request.ask))
        outcomes = world_outcomes(3, stopped)
    assert [type(outcome) for outcome in outcomes] == [StoppedError] * 3
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert checkpoint(folder / "stopped")["step"] == 2
    run_world(3, lambda comm: train(resumed_run(str(folder / "stopped"), {}, comm), comm))
    require_same_bits(checkpoint(folder / "stopped"), checkpoint(folder / "whole"))
    assert steps(folder / "stopped") == steps(folder / "whole")


def lose_a_rank(config: TrainConfig, folder: Path, then: int) -> None:
    """An elastic run of six steps that commits every second one; of three ranks one is lost in its fifth.

    The world of ``then`` ranks goes on with two survivors, of which the last is rank 0 now, and newcomers.
    """
    memories = [Memory() for _ in range(3)]
    (folder / "weights").mkdir(parents=True)

    def start() -> Run:
        return Run(config, folder, None)

    def elastic(kept: Memory, comm: Communicator) -> dict[str, Any]:
        return train(elastic_run(start, kept, comm), comm)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "step", _before_step(5, _gone))
        outcomes = world_outcomes(3, lambda comm: elastic(memories[comm.rank], comm))
    assert [type(outcome) for outcome in outcomes] == [RankLostError, OSError, RankLostError]
    survivors = [memories[2], memories[0], *(Memory() for _ in range(then - 2))]
    newest = max(survivors, key=lambda memory: memory.order)
    assert newest.order[:2] == (4, 1), "the step before is committed"
    for memory in survivors:  # what `Kept.agree` does
        memory.keep(copy.deepcopy(newest.content or {}), newest.order)
    lock = json.loads((folder / "run.lock").read_bytes())
    assert lock["token"] == memories[0].lock.token == memories[2].lock.token, "it is handed on"
    run_world(then, lambda comm: elastic(survivors[comm.rank], comm))
    assert not (folder / "run.lock").exists()
    assert [row["step"] for row in steps(folder)] == [1, 2, 3, 4, 5, 6]


class Memory:
    """Stands for `elastic.Kept` without Horovod: what one rank remembers."""

    def __init__(self) -> None:
        self.content: dict[str, Any] | None = None
        self.order = (-1, -1, -1)
        self.local: Any = None
        self.lock: Any = None

    def keep(self, content: dict[str, Any], order: tuple[int, int, int]) -> None:
        self.content, self.order = content, order

    def check_hosts(self) -> None:
        """No host comes or goes."""


def _before_step(number: int, event: Callable[[], None]) -> Callable[..., Any]:
    """A `Stepper.step` to which something happens in the n-th step of rank 1."""
    whole, made = Stepper.step, []

    def step(stepper: Stepper, *arguments: Any) -> Any:
        if stepper._comm.rank == 1:
            made.append(None)
            if len(made) == number:
                event()
        return whole(stepper, *arguments)

    return step


def _gone() -> None:
    raise OSError("the host is gone")
