"""Who decides where two ranks differ about a slice, also where some cannot do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from horovod_yolo.core.errors import FaultyRankError
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.training.double_check import Digests, DoubleCheck, Machine
from tests.helpers.world import world_outcomes

RIGHT, WRONG, OTHER = [1], [2], [3]
NO_THIRD = "there is no third rank of the same kind"


def named(ranks: int, first: list[int], of_ranks: Mapping[int, Sequence[Digests]]) -> tuple[list[int], str]:
    """Who is named, and in which words; rank 0 has the slice, and each other does it as often as it says."""

    def job(comm: Communicator) -> None:
        answers = iter(of_ranks.get(comm.rank, ()))
        batch: Any = object()  # nobody looks into it
        check = DoubleCheck(
            comm=comm,
            machines=[Machine(f"host{rank}", "cpu") for rank in range(ranks)],
            step=1,
            at=(0, 0),
            scale=1.0,
            ranks=tuple(range(ranks)),
            batch=lambda: batch,
        )
        check.require_same(["weight"], lambda: first, lambda _: next(answers))

    outcomes = world_outcomes(ranks, job)
    assert [type(outcome) for outcome in outcomes] == [FaultyRankError] * ranks, outcomes
    (words,) = {str(outcome) for outcome in outcomes}
    error = outcomes[0]
    assert isinstance(error, FaultyRankError)
    return [guilty["rank"] for guilty in error.event["ranks"]], words


@pytest.mark.parametrize(
    ("ranks", "of_ranks", "guilty", "why"),
    [
        (3, {1: [WRONG], 2: [RIGHT]}, [1], "ranks 0 and 2 have the same, and it another"),
        (3, {1: [WRONG], 2: [WRONG]}, [0], "ranks 1 and 2 have the same, and it another"),
        (3, {1: [WRONG], 2: [OTHER]}, [0, 1, 2], "each of the three has another"),
        (4, {1: [WRONG], 2: [None], 3: [RIGHT]}, [1], "ranks 0 and 3 have the same, and it another"),
        (3, {0: [RIGHT], 1: [WRONG, OTHER], 2: [None]}, [1], "it has something else than before"),
        (3, {0: [RIGHT], 1: [WRONG, WRONG], 2: [None]}, [0, 1], "had, and no third rank can do it"),
        (2, {0: [RIGHT], 1: [WRONG, WRONG]}, [0, 1], f"each repeats what it had, and {NO_THIRD}"),
        (2, {0: [OTHER], 1: [WRONG, OTHER]}, [0, 1], f"neither repeats what it had, and {NO_THIRD}"),
        (2, {0: [RIGHT], 1: [WRONG, None]}, [0, 1], f"rank 1 cannot do it again, and {NO_THIRD}"),
        (2, {0: [None], 1: [WRONG, OTHER]}, [1], "it has something else than before"),
        (2, {0: [None], 1: [WRONG, None]}, [0, 1], f"rank 0 and rank 1 cannot do it again, and {NO_THIRD}"),
    ],
)
def test_who_cannot_do_the_slice_is_no_judge_and_not_named_for_it(
    ranks: int, of_ranks: Mapping[int, Sequence[Digests]], guilty: list[int], why: str
) -> None:
    found, words = named(ranks, RIGHT, of_ranks)
    assert found == guilty and words.endswith(why), words


def test_where_the_second_rank_cannot_do_it_nothing_is_compared() -> None:
    with pytest.raises(AssertionError, match="NoneType"):
        named(3, RIGHT, {1: [None]})
