"""The plan of a run follows from the batch number alone."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_yolo.training.schedule import LEAST_WARMUP_BATCHES, Schedule

PLAN = Schedule(
    epochs=30,
    batches_per_epoch=50,
    accumulate=4,
    lr0=0.02,
    lrf=0.1,
    cosine=False,
    momentum=0.937,
    warmup_epochs=3.0,
    warmup_momentum=0.8,
    warmup_bias_lr=0.1,
)
plans = st.builds(
    replace,
    st.just(PLAN),
    epochs=st.integers(1, 50),
    batches_per_epoch=st.integers(1, 300),
    accumulate=st.integers(1, 64),
    warmup_epochs=st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.5]),
    cosine=st.booleans(),
)


@given(plans, st.integers(0, 20))
def test_windows_partition_an_epoch(plan: Schedule, epoch: int) -> None:
    windows = list(plan.windows(epoch))
    batches = [batch for w in windows for batch in range(w.first_batch, w.first_batch + w.batches)]
    assert batches == list(range(plan.batches_per_epoch))
    assert all(1 <= w.batches <= plan.accumulate for w in windows)


@given(plans, st.integers(0, 20), st.data())
def test_resuming_at_a_window_gives_the_rest_of_the_epoch(
    plan: Schedule, epoch: int, data: st.DataObject
) -> None:
    windows = list(plan.windows(epoch))
    done = data.draw(st.integers(0, len(windows)))
    first = windows[done].first_batch if done < len(windows) else plan.batches_per_epoch
    assert list(plan.windows(epoch, first)) == windows[done:]


@given(plans, st.integers(0, 20))
def test_after_the_warm_up_all_windows_but_the_last_are_full(plan: Schedule, epoch: int) -> None:
    windows = list(plan.windows(epoch))
    for w in windows[:-1]:
        if epoch * plan.batches_per_epoch + w.first_batch >= plan.warmup_batches:
            assert w.batches == plan.accumulate


def test_accumulation_grows_in_the_warm_up() -> None:
    plan = replace(PLAN, batches_per_epoch=3000, warmup_epochs=0.9)
    *sizes, _cut_by_the_end_of_the_epoch = [w.batches for w in plan.windows(0)]
    assert set(sizes) == {1, 2, 3, 4}
    assert sizes == sorted(sizes)


def test_accumulation_grows_by_a_line_from_one() -> None:
    """To two: half-way it is 1.5, which rounds to the even number."""
    plan = replace(PLAN, accumulate=2, batches_per_epoch=LEAST_WARMUP_BATCHES, warmup_epochs=1.0)
    half = LEAST_WARMUP_BATCHES // 2
    starts = {w.first_batch: w.batches for w in plan.windows(0)}
    assert [starts[half - 1], starts[half]] == [1, 2]


@pytest.mark.parametrize(
    ("epochs", "batches", "expected"),
    [
        (3.0, 50, 150),
        (3.0, 5, LEAST_WARMUP_BATCHES),
        (0.0, 50, 0),
        (0.01, 1, LEAST_WARMUP_BATCHES),
        (0.7, 301, 211),
    ],
)
def test_length_of_the_warm_up(epochs: float, batches: int, expected: int) -> None:
    length = replace(PLAN, warmup_epochs=epochs, batches_per_epoch=batches).warmup_batches
    assert length == expected and isinstance(length, int)


def test_rates_at_the_first_batch() -> None:
    rates = PLAN.rates(0, 0)
    assert (rates.lr, rates.bias_lr, rates.momentum) == (0.0, 0.1, 0.8)


def test_rates_half_way_through_the_warm_up() -> None:
    rates = PLAN.rates(1, 25)  # batch 75 of 150; epoch 1 of 30
    lr = 0.02 * ((1 - 1 / 30) * 0.9 + 0.1)
    assert rates.lr == pytest.approx(lr / 2)
    assert rates.bias_lr == pytest.approx((0.1 + lr) / 2)
    assert rates.momentum == pytest.approx((0.8 + 0.937) / 2)


@given(plans, st.integers(0, 10_000))
def test_adams_first_beta_does_not_warm_up(plan: Schedule, number: int) -> None:
    assert plan.rates(*divmod(number, plan.batches_per_epoch)).beta1 == plan.momentum


@given(plans)
def test_the_warm_up_ends_where_the_plan_goes_on(plan: Schedule) -> None:
    epoch, batch = divmod(plan.warmup_batches, plan.batches_per_epoch)
    rates = plan.rates(epoch, batch)
    lr = plan.lr0 * plan.decay(epoch)
    assert rates.lr == pytest.approx(lr)
    assert rates.bias_lr == pytest.approx(lr)
    assert rates.momentum == pytest.approx(plan.momentum)
    assert plan.rates(epoch, batch + 1) == (lr, lr, plan.momentum, plan.momentum)


@pytest.mark.parametrize("cosine", [False, True])
def test_decay_from_one_to_lrf(cosine: bool) -> None:
    plan = replace(PLAN, cosine=cosine)
    assert plan.decay(0) == pytest.approx(1)
    assert plan.decay(15) == pytest.approx(0.55)
    assert plan.decay(30) == pytest.approx(0.1)
    factors = [plan.decay(epoch) for epoch in range(31)]
    assert factors == sorted(factors, reverse=True)


def test_shapes_of_the_decay() -> None:
    linear = [PLAN.decay(epoch) for epoch in range(31)]
    steps = [a - b for a, b in pairwise(linear)]
    assert max(steps) == pytest.approx(min(steps))
    cosine = replace(PLAN, cosine=True)
    for epoch in range(31):
        assert cosine.decay(epoch) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * epoch / 30)) / 2)


def test_no_warm_up() -> None:
    plan = replace(PLAN, warmup_epochs=0.0)
    assert plan.rates(0, 0) == (0.02, 0.02, 0.937, 0.937)
    assert next(plan.windows(0)).batches == 4
