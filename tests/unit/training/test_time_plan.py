"""How many epochs fit into the time, by a clock that is made up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from threading import current_thread

import pytest

from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.training import time_plan
from horovod_yolo.training.time_plan import TimePlan
from tests.helpers.world import WorldCommunicator, run_world

ALONE = LocalCommunicator()


class Clocks:
    """One for each rank."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self) -> float:
        return self.seconds.get(current_thread().name, 0.0)

    def go_on(self, seconds: float) -> None:
        self.seconds[current_thread().name] = self() + seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(time_plan, "_now", made)
    return made


def begun(limit_s: float, epochs: int = 300) -> TimePlan:
    plan = TimePlan(epochs, limit_s)
    plan.begin()
    return plan


def decided(plan: TimePlan, clocks: Clocks, took: Sequence[float]) -> list[int]:
    """How many epochs there are after epochs that took so long."""
    found = []
    for seconds in took:
        clocks.go_on(seconds)
        plan.decide(plan.after + 1, ALONE)
        found.append(plan.epochs)
    return found


@pytest.mark.parametrize(
    ("took", "expected"),
    [
        ([10, 10, 10], [10, 10, 10]),
        ([10.1], [9]),
        ([10, 30, 30], [10, 5, 4]),  # of the middle one of the last epochs
        ([25, 10, 10, 10], [4, 4, 8, 8]),  # two more fit only after the third
        ([40, 5, 5], [2, 4, 13]),
        ([10] * 8 + [4.9], [10] * 9),  # one more would fit
        ([10, 10, 10, 10, 10, 1, 1, 1, 1], [10, 10, 10, 10, 10, 10, 10, 55, 55]),
        ([100], [1]),
        ([250], [1]),
    ],
)
def test_as_many_epochs_as_fit(clocks: Clocks, took: list[float], expected: list[int]) -> None:
    assert decided(begun(100.0), clocks, took) == expected


def test_the_guess_of_the_start_counts_for_nothing(clocks: Clocks) -> None:
    """Though it is near, or less than what is over."""
    assert decided(begun(100.0, epochs=9), clocks, [10]) == [10]
    assert decided(begun(100.0, epochs=1), clocks, [10]) == [10]


def test_no_time_is_lost_or_counted_twice_where_a_run_is_stopped(clocks: Clocks) -> None:
    plan = begun(100.0)
    clocks.go_on(10)
    plan.decide(1, ALONE)
    clocks.go_on(4)
    state = plan.state_dict()
    clocks.go_on(1000)  # until it goes on
    resumed = TimePlan(300, 100.0)
    resumed.load_state_dict(state)
    resumed.begin()
    assert resumed.epochs == 10
    clocks.go_on(6)
    assert not resumed.decide(1, ALONE), "that is decided"
    assert not resumed.decide(2, ALONE)
    assert (resumed.used_s, resumed.recent, resumed.decisions) == (20.0, [10.0, 10.0], [[1, 10]])


def test_all_ranks_go_by_the_clock_of_rank_0(clocks: Clocks) -> None:
    def job(comm: WorldCommunicator) -> TimePlan:
        plan = begun(100.0)
        for epoch in range(1, 4):
            clocks.go_on(10.0 * (comm.rank + 1))
            plan.decide(epoch, comm)
        return plan

    first, *others = run_world(3, job)
    assert first.epochs == 10 and first.used_s == 30.0
    assert others == [first, first]


def test_what_it_says(clocks: Clocks, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    plan = begun(9000.0)
    decided(plan, clocks, [600, 8500])
    plan.begin()
    assert [record.getMessage() for record in caplog.records] == [
        "--time: as many epochs as fit into 2.5 h; 300 are a guess until the first is over. "
        "Results then depend on how fast the machines are",
        "--time: after 1 epochs it is 15 in all (10 min each)",
        "--time: after 2 epochs it is 2 in all (the time is over)",
        "--time: 2.53 h of 2.5 h are used",
    ]
