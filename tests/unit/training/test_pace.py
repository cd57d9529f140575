"""What bound a run, from what each rank spent its time on."""

from __future__ import annotations

import pytest

from horovod_yolo.training.pace import Pace, Spent

ALONE = Spent(100.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("spent", "rank", "bound", "shares"),
    [
        ([ALONE], 0, "compute", (0.0, 0.0, 1.0)),
        ([Spent(100, 60, 0)], 0, "data", (0.6, 0.0, 0.4)),
        # All wait alike: for what travels.
        ([Spent(100, 0, 60), Spent(100, 0, 55)], 1, "network", (0.0, 0.55, 0.45)),
        # Rank 1 waits for its data, and rank 0 for rank 1.
        ([Spent(100, 0, 70), Spent(100, 65, 5)], 1, "data", (0.65, 0.05, 0.3)),
        # Rank 2 computes slowly.
        ([Spent(100, 10, 50), Spent(100, 10, 50), Spent(100, 10, 2)], 2, "compute", (0.1, 0.02, 0.88)),
        ([Spent()], 0, "compute", (0.0, 0.0, 1.0)),
    ],
)
def test_the_rank_that_waits_least_for_others_shows_what_bound_all(
    spent: list[Spent], rank: int, bound: str, shares: tuple[float, ...]
) -> None:
    pace = Pace.of(spent)
    assert (pace.rank, pace.bound) == (rank, bound)
    assert tuple(pace.shares.values()) == pytest.approx(shares)


def test_the_line_says_what_to_try_and_which_rank_the_others_wait_for() -> None:
    uneven = Pace.of([Spent(100, 0, 70), Spent(100, 65, 5), Spent(100, 0, 60)])
    assert uneven.words("host2") == (
        "bound by data (65% of the time; network 5%, compute 30%): try more --workers, --cache ram or disk, "
        "or faster storage. The other ranks waited 60% of the time for rank 1 on host2"
    )
    even = Pace.of([Spent(100, 0, 8), Spent(100, 0, 5)])
    assert even.words("host2").startswith(
        "bound by compute (95% of the time; data 0%, network 5%): try more ranks"
    )
    assert "host2" not in even.words("host2")


def test_epochs_add_up() -> None:
    assert Spent(1, 2, 3) + Spent(10, 20, 30) == Spent(11, 22, 33)
