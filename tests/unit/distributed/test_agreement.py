"""What one rank found becomes what all of them know."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.agreement import (
    agree,
    checksum,
    on_rank_0,
    raise_together,
    require_equal,
    require_same,
    together,
)
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.world import run_world, world_outcomes


@pytest.mark.parametrize(
    ("problems", "expected"),
    [
        ([None], None),
        (["p"], "p"),
        ([None, None, None], None),
        (["p", "p", "p"], "p"),
        ([None, "p", None], "p (on rank 1 of 3)"),
        (["p", "q", None], "p (on ranks 0, 1 of 3)"),
        ([None, "", None], " (on rank 1 of 3)"),
        ([None, *["p"] * 11], "p (on ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more of 12)"),
    ],
)
def test_agree_gives_all_the_first_problem(problems: list[str | None], expected: str | None) -> None:
    found = run_world(len(problems), lambda comm: agree(comm, problems[comm.rank]))
    assert found == [expected] * len(problems)


def test_a_problem_of_one_rank_is_raised_on_all() -> None:
    run_world(3, lambda comm: raise_together(comm, None))
    outcomes = world_outcomes(3, lambda comm: raise_together(comm, "p" if comm.rank == 2 else None))
    assert [(type(error), str(error)) for error in outcomes] == [(UserError, "p (on rank 2 of 3)")] * 3


def test_together_raises_what_any_rank_met() -> None:
    def make(comm: Communicator) -> int:
        def alone() -> int:
            if comm.rank == 1:
                raise UserError("wrong", where="here", fix="mend it")
            return comm.rank

        return together(comm, alone)

    outcomes = world_outcomes(2, make)
    assert [(type(e), str(e)) for e in outcomes] == [(UserError, "here: wrong. mend it (on rank 1 of 2)")] * 2
    assert run_world(2, lambda comm: together(comm, lambda: comm.rank)) == [0, 1]


def test_a_fault_is_not_a_problem_to_agree_on() -> None:
    """It is the rank's own: no collective call follows, and the launcher ends the job."""
    with pytest.raises(ZeroDivisionError):
        together(LocalCommunicator(), lambda: 1 // 0)


def test_what_rank_0_makes_all_have() -> None:
    def make(comm: Communicator) -> str:
        assert comm.rank == 0
        return "made by rank 0"

    def refuse(comm: Communicator) -> None:
        assert comm.rank == 0
        raise UserError("the disk is full")

    assert run_world(3, lambda comm: on_rank_0(comm, lambda: make(comm))) == ["made by rank 0"] * 3
    outcomes = world_outcomes(3, lambda comm: on_rank_0(comm, lambda: refuse(comm)))
    assert [(type(error), str(error)) for error in outcomes] == [(UserError, "the disk is full")] * 3


def test_ranks_that_have_different_values() -> None:
    def require(comm: Communicator, values: str) -> None:
        require_same(comm, values[comm.rank], "the images", where="d.yaml", fix="copy them")

    run_world(3, lambda comm: require(comm, "kkk"))
    outcomes = world_outcomes(3, lambda comm: require(comm, "klk"))
    text = "d.yaml: the images differ between ranks: 2 versions. copy them"
    assert [(type(error), str(error)) for error in outcomes] == [(UserError, text)] * 3


def tensors() -> dict[str, Tensor]:
    return {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor(3),
        "c": torch.zeros(0, 4),
        "d": torch.tensor([True, False]),
        "e": torch.tensor([0.5], dtype=torch.bfloat16),
    }


def test_checksum_follows_bits_not_storage() -> None:
    first = checksum(tensors())
    again = dict(reversed(tensors().items()))
    again["a"] = again["a"].t().contiguous().t()  # the same values, laid out the other way round
    assert checksum(again) == first


def test_checksum_sees_each_bit() -> None:
    sums = {checksum(tensors())}
    for change in (
        {"a": torch.arange(6.0).reshape(2, 3) * (1 + 1e-7)},
        {"a": -torch.arange(6.0).reshape(2, 3)},  # 0.0 becomes -0.0 as well
        {"b": torch.tensor(4)},
        {"d": torch.tensor([True, True])},
        {"f": torch.zeros(0)},
    ):
        sums.add(checksum({**tensors(), **change}))
    minus_zero = tensors()
    minus_zero["a"][0, 0] = -0.0
    sums.add(checksum(minus_zero))
    assert len(sums) == 7


def test_checksum_of_a_tensor_that_needs_gradients() -> None:
    weight = nn.Parameter(torch.ones(3))
    assert checksum({"w": weight}) == checksum({"w": torch.ones(3)})


def test_require_equal_names_the_ranks_that_differ() -> None:
    def require(comm: Communicator, odd: set[int]) -> None:
        values = tensors()
        if comm.rank in odd:
            values["a"][0, 0] += comm.rank
        require_equal(comm, values, "parameters")

    run_world(4, lambda comm: require(comm, set()))
    outcomes = world_outcomes(4, lambda comm: require(comm, {1, 3}))
    text = "parameters differ from rank 0's on ranks 1, 3 after the broadcast"
    assert [(type(error), str(error)) for error in outcomes] == [(RuntimeError, text)] * 4
