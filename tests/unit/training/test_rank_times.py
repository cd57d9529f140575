"""What ranks tell each other of their time."""

from __future__ import annotations

import time

import pytest
import torch

from horovod_yolo.training.events import RankTime
from horovod_yolo.training.rank_times import RankTimes
from tests.helpers.world import WorldCommunicator, run_world


class Clock:
    """Time and waits that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.data = self.ranks = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def waited(self) -> tuple[float, float]:
        return self.data, self.ranks


def test_each_step_is_told_of_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times = RankTimes(0, 1, clock.waited)
    clock.now, clock.data, clock.ranks = 3.0, 1.0, 0.5
    assert times.heard(times.message(8)) == (RankTime(8, 3.0, 1.0, 0.5),)
    clock.now, clock.data = 5.0, 1.25
    assert times.heard(times.message(4)) == (RankTime(4, 2.0, 0.25, 0.0),)


def test_a_try_that_was_no_step_counts_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times = RankTimes(0, 1, clock.waited)
    clock.now = 3.0
    times.message(8)
    clock.now = 4.0
    assert times.heard(times.message(8)) == (RankTime(8, 4.0, 0.0, 0.0),)


def test_time_between_epochs_is_left_out_and_waits_for_data_begin_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    times = RankTimes(0, 1, clock.waited)
    clock.now, clock.data = 3.0, 1.0
    times.heard(times.message(8))
    clock.now = 100.0
    times.begin()
    clock.now, clock.data = 102.0, 1.5
    assert times.heard(times.message(8)) == (RankTime(8, 2.0, 1.5, 0.0),)
    clock.now, clock.data = 103.0, 0.25  # within the epoch, after batches were asked for anew
    assert times.heard(times.message(8)) == (RankTime(8, 1.0, 0.25, 0.0),)


def test_all_hear_of_all() -> None:
    def rank(comm: WorldCommunicator) -> tuple[RankTime, ...]:
        times = RankTimes(comm.rank, comm.size, lambda: (0.0, 0.0))
        told = torch.tensor(times.message(10 + comm.rank), dtype=torch.float64)
        return times.heard(comm.allreduce_sum(told, "told").wait().tolist())

    heard = run_world(3, rank)
    assert heard[0] == heard[1] == heard[2]
    assert [one.images for one in heard[0]] == [10, 11, 12] and all(one.seconds > 0 for one in heard[0])
