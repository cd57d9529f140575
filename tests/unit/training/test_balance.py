"""Shares of slices: the best there are, by what slices take each rank, and kept where little is to be won."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_yolo.training.balance import KEPT, MEASURED, Balance, best_shares

times = st.floats(0.01, 10)


@given(st.integers(1, 9), st.lists(times, min_size=1, max_size=3))
def test_no_other_shares_are_ready_sooner(count: int, seconds: list[float]) -> None:
    def slowest(shares: tuple[int, ...]) -> float:
        return max(share * each for share, each in zip(shares, seconds, strict=True))

    found = best_shares(count, seconds)
    least = int(count >= len(seconds))
    others = product(range(least, count + 1), repeat=len(seconds))
    assert sum(found) == count and min(found) >= least
    assert slowest(found) == min(slowest(shares) for shares in others if sum(shares) == count)


def measured(shares: tuple[int, ...], seconds: tuple[float, ...], steps: int = MEASURED + 1) -> list[Balance]:
    """What each rank knows of itself after so many steps, in which a slice took it so long."""
    ranks = [Balance(rank, shares, adapts=True, pixels=10.0) for rank in range(len(shares))]
    for balance in ranks:
        work(balance, seconds[balance.rank], steps)
    return ranks


def work(balance: Balance, seconds: float, steps: int) -> None:
    share = balance.shares[balance.rank]
    for _ in range(steps):
        balance.note(share * seconds, share * balance.pixels)


def exchange(ranks: list[Balance]) -> list[bool]:
    """The sum over the ranks, and what each makes of it."""
    heard = [sum(numbers) for numbers in zip(*(balance.message() for balance in ranks), strict=True)]
    return [balance.heard(heard) for balance in ranks]


def test_all_ranks_decide_alike_once_all_are_measured() -> None:
    ranks = measured((4, 4), (3.0, 1.0), steps=MEASURED)
    assert exchange(ranks) == [False, False], "the first step does not count"
    for balance in ranks:
        work(balance, (3.0, 1.0)[balance.rank], 1)
    assert exchange(ranks) == [True, True]
    assert [balance.shares for balance in ranks] == [(2, 6), (2, 6)]
    assert [(balance.slices.first, balance.slices.last) for balance in ranks] == [(0, 2), (2, 8)]
    assert exchange(ranks) == [False, False], "what was measured with other shares is forgotten"


@pytest.mark.parametrize(
    ("shares", "seconds"),
    [((4, 4), (1.0, 1.0)), ((4, 4), (1.1, 1.0)), ((4, 4), (1.0, 1.3)), ((40, 40), (1.04, 1.0))],
)
def test_shares_stay_where_others_are_hardly_ready_sooner(
    shares: tuple[int, ...], seconds: tuple[float, ...]
) -> None:
    ranks = measured(shares, seconds)
    assert exchange(ranks) == [False, False]
    assert ranks[0].shares == shares


def test_each_change_needs_more_steps_than_the_one_before() -> None:
    """Slices that move are made anew, so noise must not move them."""
    ranks, needed = measured((4, 4), (3.0, 1.0), steps=0), []
    for slow in (0, 1, 0, 1):
        steps = 0
        while not exchange(ranks)[0]:
            for balance in ranks:
                work(balance, 3.0 if balance.rank == slow else 1.0, 1)
            steps += 1
        ranks[0]._measured.clear()
        ranks[1]._measured.clear()
        needed.append(steps)
    assert needed == [1 + MEASURED * times for times in (1, 2, 4, 4)]


def changed_after(seconds: tuple[float, ...], count: int, noise: float, seed: int) -> list[int]:
    """Steps, of 200, after which shares changed: each rank's times vary by so much from step to step."""
    chance, even = random.Random(seed), divmod(count, len(seconds))
    shares = tuple(even[0] + (rank < even[1]) for rank in range(len(seconds)))
    ranks = [Balance(rank, shares, adapts=True) for rank in range(len(seconds))]
    changed = []
    for step in range(200):
        for balance in ranks:
            if step % 50 == 0:
                balance.begin_epoch()
            work(balance, seconds[balance.rank] * max(0.2, chance.gauss(1, noise)), 1)
        if exchange(ranks)[0]:
            changed.append(step + 1)
    return changed


@pytest.mark.parametrize(
    ("seconds", "count", "noise", "settled"),
    [
        ((3.0, 1.0), 8, 0.05, 6),
        ((3.0, 1.0), 8, 0.1, 6),
        ((3.0, 1.0), 16, 0.05, 6),
        ((1.0, 1.0, 2.0, 2.0), 16, 0.05, 17),
        ((1.0, 1.0), 8, 0.1, 0),
    ],
)
def test_noise_moves_no_slices_once_the_shares_fit(
    seconds: tuple[float, ...], count: int, noise: float, settled: int
) -> None:
    for seed in range(20):
        changed = changed_after(seconds, count, noise, seed)
        assert max(changed, default=0) <= settled, (seed, changed)
        assert bool(changed) == bool(settled) and changed[:1] in ([], [MEASURED + 1])


def test_a_rank_that_becomes_slow_is_given_less_once_half_of_what_counts_is_slow() -> None:
    ranks, steps = measured((4, 4), (1.0, 1.0), steps=100), 0
    assert exchange(ranks) == [False, False]
    while not exchange(ranks)[0]:
        for balance in ranks:
            work(balance, 1.0 if balance.rank else 3.0, 1)
        steps += 1
    assert steps == KEPT * MEASURED // 2
    assert ranks[0].shares == (3, 5), "the median is between both then, and the next change needs as long"
    for balance in ranks:
        work(balance, 1.0 if balance.rank else 3.0, 2 * MEASURED + 1)
    assert exchange(ranks) == [True, True] and ranks[0].shares == (2, 6)


def test_one_slow_step_is_no_reason() -> None:
    ranks = measured((4, 4), (1.0, 1.0))
    work(ranks[0], 50.0, 1)
    assert exchange(ranks) == [False, False]


def test_a_rank_that_is_slower_with_more_slices_is_not_given_them_again_and_again() -> None:
    """As with models whose losses need all predictions first: each of several slices takes more than one."""

    def took(balance: Balance) -> float:
        return 1.0 if balance.shares[balance.rank] == 1 else 1.4

    ranks, changes = [Balance(rank, (2, 1), adapts=True) for rank in range(2)], 0
    for _ in range(6):
        for balance in ranks:
            work(balance, took(balance), MEASURED + 1)
        changes += exchange(ranks)[0]
    assert changes <= 1
    ranks[0].begin_epoch()
    assert ranks[0]._measured == {}, "machines change: the next epoch may try again"


def test_a_rank_without_images_is_not_measured_in_that_step() -> None:
    ranks = measured((4, 4), (3.0, 1.0))
    ranks[0].note(0.5, 0.0)
    assert exchange(ranks) == [True, True]
    assert ranks[0].seconds == (3.0, 1.0)


def test_shares_that_do_not_adapt_send_nothing() -> None:
    balance = Balance(0, (2, 6))
    work(balance, 1.0, 9)
    assert balance.message() == [] and not balance.heard([])
