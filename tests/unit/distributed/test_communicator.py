"""Agreement, checksums, and the communicator of one rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.distributed.communicator import Communicator, agree, checksum, require_equal
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.contract import check_contract


class Gathers(LocalCommunicator):
    """Stands for one of several ranks: what the others would say in ``allgather_object`` is given."""

    def __init__(self, *answers: Any) -> None:
        self._answers = answers
        self.size = len(answers)

    def allgather_object(self, value: Any) -> list[Any]:
        return list(self._answers)


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
def test_agree_gives_the_first_problem(problems: list[str | None], expected: str | None) -> None:
    assert agree(Gathers(*problems), problems[0]) == expected


def test_agree_of_one_rank() -> None:
    assert agree(LocalCommunicator(), None) is None
    assert agree(LocalCommunicator(), "p") == "p"


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
    values = tensors()
    own = checksum(values)
    require_equal(Gathers(own, own, own), values, "parameters")
    with pytest.raises(RuntimeError, match="parameters differ from rank 0's on ranks 1, 3 after"):
        require_equal(Gathers(own, "x", own, "y"), values, "parameters")


def test_one_rank_is_its_own_sum() -> None:
    comm: Communicator = LocalCommunicator()  # and mypy checks that it is one
    assert (comm.rank, comm.size, comm.local_rank, comm.local_size, comm.wait_s) == (0, 1, 0, 1, 0.0)
    value = torch.tensor([1.0, 2.0])
    assert torch.equal(comm.allreduce_sum(value, "x").wait(), torch.tensor([1.0, 2.0]))
    check_contract(comm)
    comm.close()


def test_one_rank_steps_the_optimizer_it_has() -> None:
    model = nn.Linear(2, 1, bias=False)
    plain = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer, exchange = LocalCommunicator().exchange_gradients(
        plain, model.named_parameters(), compress=True, group_mb=1.0
    )
    assert optimizer is plain
    before = model.weight.detach().clone()
    exchange.expect(2)
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
    exchange.finish()
    with exchange.stepping():
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - 2)
