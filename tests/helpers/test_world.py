"""The world in one process sums as real ranks do, and says who waits for what where they would hang."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.distributed.communicator import Communicator
from tests.helpers.world import (
    DeadlockError,
    MismatchError,
    RankLostError,
    WorldCommunicator,
    run_world,
    world_outcomes,
)


def test_every_rank_gets_the_sum_in_its_own_tensor() -> None:
    def job(comm: Communicator) -> tuple[Tensor, Tensor]:
        mine = torch.tensor([comm.rank, 10], dtype=torch.int64)
        total = comm.allreduce_sum(mine, "a").wait()
        total[1] += comm.rank
        return total, mine

    for rank, (total, mine) in enumerate(run_world(3, job)):
        assert total.dtype == torch.int64
        assert total.tolist() == [3, 30 + rank]
        assert mine.tolist() == [rank, 10]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_sums_go_from_the_first_rank_to_the_last_in_the_tensors_type(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    parts = (torch.randn(4, 50, generator=rng, dtype=torch.float64) * 100).to(dtype)
    expected = parts[0] + parts[1] + parts[2] + parts[3]
    for total in run_world(4, lambda comm: comm.allreduce_sum(parts[comm.rank], "a").wait()):
        assert total.dtype == dtype and torch.equal(total, expected)


def test_the_largest_value_at_each_place() -> None:
    parts = torch.tensor([[1.0, -5.0, 3.0], [2.0, -7.0, 0.0], [0.0, -6.0, 9.0]])
    for largest in run_world(3, lambda comm: comm.allreduce_max(parts[comm.rank], "a").wait()):
        assert largest.tolist() == [2.0, -5.0, 9.0]


def test_objects_arrive_as_copies() -> None:
    def job(comm: Communicator) -> tuple[list[dict[str, int]], dict[str, int]]:
        everyone = comm.allgather_object({"rank": comm.rank})
        everyone[0]["rank"] += 10
        first = comm.broadcast_object({"rank": comm.rank + 5})
        first["rank"] += comm.rank
        return everyone, first

    for rank, (everyone, first) in enumerate(run_world(3, job)):
        assert [one["rank"] for one in everyone] == [10, 1, 2]
        assert first["rank"] == 5 + rank


def test_tensors_of_rank_0_overwrite_the_others() -> None:
    def job(comm: Communicator) -> dict[str, Any]:
        bn = nn.BatchNorm1d(2)
        bn.num_batches_tracked += comm.rank
        bn.weight.data += comm.rank
        before = bn.weight
        comm.broadcast_tensors(bn.state_dict())
        assert bn.weight is before
        return bn.state_dict()

    for state in run_world(3, job):
        assert state["num_batches_tracked"] == 0
        assert torch.equal(state["weight"], torch.ones(2))


def test_the_places_of_ranks_on_hosts() -> None:
    places = run_world(4, lambda c: (c.rank, c.size, c.local_rank, c.local_size), hosts=(3, 1))
    assert places == [(0, 4, 0, 3), (1, 4, 1, 3), (2, 4, 2, 3), (3, 4, 0, 1)]
    assert run_world(2, lambda c: (c.local_rank, c.local_size)) == [(0, 2), (1, 2)]


def test_the_order_of_calls_is_recorded() -> None:
    def job(comm: WorldCommunicator) -> list[str]:
        first = comm.allreduce_sum(torch.zeros(2), "a")
        second = comm.allreduce_max(torch.zeros((), dtype=torch.int64), "b")
        second.wait()
        first.wait()
        comm.allgather_object(None)
        comm.broadcast_tensors({"y": torch.zeros(1), "x": torch.zeros(3, 2)})
        return [str(call) for call in comm.calls]

    assert (
        run_world(2, job)
        == [
            [
                "allreduce_sum 'a' (2,) float32",
                "allreduce_max 'b' () int64",
                "allgather_object",
                "broadcast_tensors x (3, 2) float32, y (1,) float32",
            ]
        ]
        * 2
    )


def test_a_rank_that_has_returned_is_not_waited_for() -> None:
    def job(comm: Communicator) -> None:
        comm.broadcast_object(None)
        if comm.rank == 3:
            return
        if comm.rank == 2:
            comm.allgather_object("x")
        comm.allreduce_sum(torch.zeros(5), "losses").wait()

    with pytest.raises(DeadlockError) as caught:
        run_world(4, job)
    assert str(caught.value) == (
        "ranks 0, 1: waiting in call 2, allreduce_sum 'losses' (5,) float32; "
        "rank 2: waiting in call 2, allgather_object; rank 3: returned after 1 call"
    )


DIFFERENT_CALLS: dict[str, tuple[Callable[[Communicator], Any], str]] = {
    "kind": (lambda c: c.allgather_object(1), "rank 1: allgather_object"),
    "name": (lambda c: c.allreduce_sum(torch.zeros(2), "b").wait(), "rank 1: allreduce_sum 'b'"),
    "shape": (
        lambda c: c.allreduce_sum(torch.zeros(3), "a").wait(),
        "rank 1: allreduce_sum 'a' (3,) float32",
    ),
    "type": (
        lambda c: c.allreduce_sum(torch.zeros(2, dtype=torch.float64), "a").wait(),
        "rank 1: allreduce_sum 'a' (2,) float64",
    ),
    "reduction": (lambda c: c.allreduce_max(torch.zeros(2), "a").wait(), "rank 1: allreduce_max 'a'"),
}


@pytest.mark.parametrize("what", DIFFERENT_CALLS)
def test_different_calls_raise_on_all_ranks(what: str) -> None:
    call, named = DIFFERENT_CALLS[what]

    def job(comm: Communicator) -> Any:
        return call(comm) if comm.rank == 1 else comm.allreduce_sum(torch.zeros(2), "a").wait()

    outcomes = world_outcomes(3, job)
    assert [type(outcome) for outcome in outcomes] == [MismatchError] * 3
    for outcome in outcomes:
        assert "ranks 0, 2: allreduce_sum 'a'" in str(outcome) and named in str(outcome)
    with pytest.raises(MismatchError):
        run_world(3, job)


def test_a_mismatch_of_many_tensors_names_those_that_differ() -> None:
    def job(comm: Communicator) -> None:
        tensors = {f"t{k}": torch.zeros(2) for k in range(50)}
        tensors["t7"] = torch.zeros(2 + comm.rank)
        comm.broadcast_tensors(tensors)

    with pytest.raises(MismatchError) as caught:
        run_world(2, job)
    assert str(caught.value) == (
        "call 1 differs: rank 0: broadcast_tensors t7 (2,) float32; rank 1: broadcast_tensors t7 (3,) float32"
    )


def test_the_exception_of_a_rank_reaches_the_test_and_releases_the_others() -> None:
    def job(comm: Communicator) -> Any:
        comm.broadcast_object(1)
        if comm.rank == 1:
            raise KeyError("broken")
        return comm.allreduce_sum(torch.ones(1), "a").wait()

    first, own, last = world_outcomes(3, job)
    assert isinstance(own, KeyError)
    assert type(first) is type(last) is RankLostError
    assert str(first) == (
        "ranks 0, 2: waiting in call 2, allreduce_sum 'a' (1,) float32; "
        "rank 1: ended after 1 call with KeyError: 'broken'"
    )
    with pytest.raises(KeyError, match="broken"):
        run_world(3, job)


def test_the_loss_of_a_rank_is_a_lost_error() -> None:
    def job(comm: Communicator) -> str:
        if comm.rank == 0:
            raise SystemExit(3)
        try:
            comm.allgather_object(None)
        except comm.lost_errors:
            return "noticed"
        return "not noticed"

    assert world_outcomes(3, job)[1:] == ["noticed"] * 2
    with pytest.raises(SystemExit):
        run_world(3, job)


def test_what_all_have_made_is_answered_although_a_rank_is_lost() -> None:
    def job(comm: Communicator) -> list[int]:
        pending = comm.allreduce_sum(torch.ones(1), "a")
        if comm.rank == 2:
            raise ValueError
        return pending.wait().tolist()

    assert world_outcomes(3, job)[:2] == [[3.0], [3.0]]


def test_no_thread_is_left_behind() -> None:
    def job(comm: Communicator) -> None:
        if comm.rank:
            comm.allgather_object(1)

    before = threading.enumerate()
    for _ in range(3):
        world_outcomes(4, job)
    assert threading.enumerate() == before


def test_calls_that_real_ranks_refuse() -> None:
    def under_way_twice(comm: Communicator) -> None:
        pending = comm.allreduce_sum(torch.zeros(1), "a")
        comm.allreduce_sum(torch.zeros(1), "a")
        pending.wait()

    def changed(comm: Communicator) -> None:
        mine = torch.zeros(1)
        pending = comm.allreduce_sum(mine, "a")
        mine += 1
        pending.wait()

    for job, error, words in (
        (under_way_twice, ValueError, "named 'a' is under way"),
        (changed, AssertionError, "'a' was changed"),
        (lambda c: c.allreduce_sum(torch.zeros(1, dtype=torch.bfloat16), "a"), ValueError, "bfloat16"),
        (lambda c: c.allreduce_sum(torch.zeros(2, 3).t(), "a"), ValueError, "contiguous"),
    ):
        with pytest.raises(error, match=words):
            run_world(2, job)


def test_each_rank_has_its_own_random_numbers() -> None:
    def numbers(_: Communicator) -> tuple[float, float, float]:
        return float(torch.rand(1)), float(np.random.rand()), random.random()

    def job(comm: Communicator) -> list[tuple[float, float, float]]:
        drawn = []
        for k in range(3):
            drawn.append(numbers(comm))
            comm.allgather_object(k)  # the others draw meanwhile
        return drawn

    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), expected[:1])
    together = run_world(3, job)
    assert torch.equal(torch.rand(1), expected[1:]), "the test's own numbers go on"
    assert together == run_world(3, job)
    assert len({drawn for rank in together for draws in rank for drawn in draws}) == 27
    alone = run_world(1, lambda comm: [numbers(comm) for _ in range(3)])
    assert alone[0] == together[0]


class Line(nn.Module):
    """One weight for each input; one more that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))


def exchanged(comm: Communicator, model: nn.Module, wire: torch.dtype | None = None) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return comm.exchange_gradients(optimizer, model.named_parameters(), wire=wire, group_mb=1.0)


@pytest.mark.parametrize("passes", [1, 3])
def test_gradients_are_summed_over_ranks_and_backward_passes(passes: int) -> None:
    inputs = torch.randn(2, passes, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def job(comm: WorldCommunicator) -> list[Tensor]:
        model = Line()
        optimizer, exchange = exchanged(comm, model)
        for _ in range(2):
            exchange.expect(passes)
            for k in range(passes):
                (model.weight * inputs[comm.rank, k]).sum().backward()
            exchange.finish()
            with exchange.stepping():
                optimizer.step()
            assert torch.equal(model.unused.grad, torch.zeros_like(model.unused))
            optimizer.zero_grad()
        assert [call.kind for call in comm.calls] == ["exchange_gradients", "finish", "finish"]
        return [model.weight.detach(), model.unused.detach()]

    for weight, unused in run_world(2, job):
        torch.testing.assert_close(weight, -2 * inputs.sum((0, 1)), rtol=1e-15, atol=0)
        assert torch.equal(unused, torch.ones_like(unused))


def test_compressed_gradients_travel_and_add_in_half_precision() -> None:
    values = [1.0, 2**-11, 2**-11]  # each too small to change a 1 in half precision

    def job(comm: Communicator) -> Tensor:
        model = Line()
        _, exchange = exchanged(comm, model, wire=torch.float16)
        (model.weight * values[comm.rank]).sum().backward()
        exchange.finish()
        gradient: Tensor = model.weight.grad
        return gradient

    for gradient in run_world(3, job):
        assert gradient.tolist() == [1.0] * 3 and gradient.dtype == torch.float64


def test_a_gradient_leaves_in_the_last_backward_pass() -> None:
    def job(comm: Communicator) -> list[float]:
        model = Line()
        _, exchange = exchanged(comm, model)
        exchange.expect(2)
        for _ in range(2):
            model.weight.sum().backward()
        model.weight.grad /= 100
        exchange.finish()
        return model.weight.grad.tolist()

    assert run_world(2, job) == [[4.0] * 3] * 2


def test_what_hvds_optimizer_refuses() -> None:
    def train(*words: str) -> Callable[[Communicator], None]:
        def job(comm: Communicator) -> None:
            model = Line()
            optimizer, exchange = exchanged(comm, model)
            for word in words:
                if word == "backward":
                    model.weight.sum().backward()
                elif word == "stepping":
                    with exchange.stepping():
                        optimizer.step()
                else:
                    {"finish": exchange.finish, "step": optimizer.step, "zero": optimizer.zero_grad}[word]()

        return job

    run_world(2, train("backward", "finish", "stepping", "zero", "backward", "finish", "stepping"))
    for words, message in (
        (("backward", "backward"), "more backward passes than expected"),
        (("backward", "finish", "step"), "outside stepping"),
        (("backward", "stepping"), "before finish"),
        (("backward", "finish", "stepping", "stepping"), "before finish"),
        (("backward", "zero", "finish"), "zero_grad"),
    ):
        with pytest.raises(AssertionError, match=message):
            run_world(2, train(*words))


def test_ranks_with_one_model_between_them_are_found() -> None:
    model = Line()
    with pytest.raises(AssertionError, match="ranks 0 and 1 share parameter 'weight'"):
        run_world(2, lambda comm: exchanged(comm, model))


def test_a_parameter_frozen_on_one_rank_only_is_named() -> None:
    def job(comm: Communicator) -> None:
        model = Line()
        model.unused.requires_grad_(comm.rank == 0)
        exchanged(comm, model)

    with pytest.raises(MismatchError, match="rank 0: exchange_gradients unused; rank 1: exch"):
        run_world(2, job)
