"""What every `Communicator` promises, checked from inside one rank.

As a program it is one rank of a job: ``horovodrun -np 2 python -m tests.helpers.contract``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from horovod_yolo.distributed import horovod_backend
from horovod_yolo.distributed.backends import connect
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.training.eager import eager

BIG = 2**53 + 1  # the smallest whole number that float64 does not hold


def check_contract(comm: Communicator) -> None:
    """Fail where a call answers wrongly. *Collective.*"""
    assert comm.rank in range(comm.size)
    assert 0 <= comm.local_rank < comm.local_size <= comm.size
    _check_sums(comm)
    _check_maxima(comm)
    _check_small_sums(comm)
    _check_sums_of_integers(comm)
    check_objects(comm)
    tensors = {"b": torch.full((2,), float(comm.rank)), "a": torch.tensor(comm.rank)}
    comm.broadcast_tensors(tensors)
    assert tensors["b"].tolist() == [0.0, 0.0] and tensors["a"].item() == 0
    _check_gradients(comm)
    _check_abandoned_gradients(comm)
    assert comm.wait_s >= 0


def _check_gradients(comm: Communicator) -> None:
    """Sums over ranks in two steps of two passes: in one group, a group each, and in each shorter type."""
    ranks = sum(range(1, comm.size + 1))
    shorter = [(str(wire), wire, 0.0) for wire in comm.wire_types]
    for name, wire, group_mb in (("all", None, 1.0), ("each", None, 0.0), *shorter):
        weights = {key: nn.Parameter(torch.zeros(3, 2)) for key in ("a", "b", "c")}
        named = [(f"{name}.{key}", weight) for key, weight in weights.items()]
        plain = eager(torch.optim.SGD)(weights.values(), lr=1.0)
        optimizer, exchange = comm.exchange_gradients(plain, named, wire=wire, group_mb=group_mb)
        for step in (1, 2):
            exchange.expect(2)
            torch.stack([weight * (comm.rank + 1) for weight in weights.values()]).sum().backward()
            torch.stack([weight * step for weight in weights.values()]).sum().backward()
            exchange.finish()
            assert all((weight.grad == ranks + comm.size * step).all() for weight in weights.values())
            with exchange.stepping():
                optimizer.step()
            optimizer.zero_grad()
        assert all((weight == -(2 * ranks + 3 * comm.size)).all() for weight in weights.values())


def _check_abandoned_gradients(comm: Communicator) -> None:
    """The last rank leaves off in the middle of its last pass: all end the step, the next one is whole."""
    ranks, last = sum(range(1, comm.size + 1)), comm.rank == comm.size - 1
    for name, group_mb, done in (("one", 1.0, 1), ("own", 0.0, 1), ("none", 0.0, 0), ("most", 0.0, 2)):
        weights = {key: nn.Parameter(torch.zeros(3, 2)) for key in ("a", "b", "c")}
        named = [(f"left.{name}.{key}", weight) for key, weight in weights.items()]
        plain = eager(torch.optim.SGD)(weights.values(), lr=1.0)
        optimizer, exchange = comm.exchange_gradients(plain, named, wire=None, group_mb=group_mb)
        exchange.expect(2)
        torch.stack(list(weights.values())).sum().backward()
        reached = list(weights.values())[-done if done else 3 :] if last else list(weights.values())
        for weight in reached:
            weight.sum().backward()
        if last:
            exchange.abandon()
        exchange.finish()
        optimizer.zero_grad()
        exchange.expect(1)
        torch.stack([weight * (comm.rank + 1) for weight in weights.values()]).sum().backward()
        exchange.finish()
        assert all((weight.grad == ranks).all() for weight in weights.values())
        with exchange.stepping():
            optimizer.step()


def check_objects(comm: Communicator) -> None:
    """Fail where an object is not what was sent. *Collective.*"""
    ranks = range(comm.size)
    own = {"rank": comm.rank, "none": None, "bytes": bytes(range(100)) * comm.rank}
    assert comm.allgather_object(own) == [
        {"rank": r, "none": None, "bytes": bytes(range(100)) * r} for r in ranks
    ]
    assert comm.allgather_object(None if comm.rank else "v") == [None if r else "v" for r in ranks]
    assert comm.broadcast_object(("of", comm.rank, bytes(range(100)))) == ("of", 0, bytes(range(100)))


def _check_sums(comm: Communicator) -> None:
    ranks = range(comm.size)
    whole = comm.allreduce_sum(torch.tensor([BIG, -comm.rank]), "sum.int64")
    for dtype in (torch.float32, torch.float64):  # two are under way at a time
        own = torch.tensor([[comm.rank + 0.5], [-1.0]], dtype=dtype)
        total = comm.allreduce_sum(own, f"sum.{dtype}").wait()
        assert total.dtype == dtype and total.tolist() == [[sum(r + 0.5 for r in ranks)], [-1.0 * comm.size]]
        assert own.tolist() == [[comm.rank + 0.5], [-1.0]]  # the input stays
    total = whole.wait()
    assert total.dtype == torch.int64 and total.tolist() == [BIG * comm.size, -sum(ranks)]
    assert comm.allreduce_sum(torch.zeros(0), "sum.empty").wait().shape == (0,)
    assert comm.allreduce_sum(torch.tensor(1.0), "sum.scalar").wait().item() == comm.size


def _check_small_sums(comm: Communicator) -> None:
    """As of batch norm: some under way over other calls, waited for in any order; all have the same bits."""
    own = torch.randn(257, generator=torch.Generator().manual_seed(comm.rank), dtype=torch.float64)
    large = torch.full((50_000,), float(comm.rank))
    pending = [comm.allreduce_sum(own * factor, f"small.{factor}") for factor in (1, 2, 3)]
    pending.append(comm.allreduce_sum(large, "small.large"))
    assert comm.allgather_object(comm.rank) == list(range(comm.size))
    whole, three, two, one = (sum_.wait() for sum_ in reversed(pending))
    assert (whole == sum(range(comm.size))).all()
    torch.testing.assert_close(two + one, three)
    message = own.clone()
    assert comm.messages.sum_in_place(message, "small.message").wait() is message
    torch.testing.assert_close(message, one)
    again = comm.allreduce_sum(own, "small.1")
    found = comm.allgather_object((one.tolist(), two.tolist()))
    assert all(of_rank == found[0] for of_rank in found)
    assert torch.equal(again.wait(), one)


def _check_sums_of_integers(comm: Communicator) -> None:
    """As of exact gradients: of 32 bits, some under way, each in its place; no float holds them all."""
    counts, most = (1, 1000, 300_000), 2**31 // comm.size

    def of(rank: int, count: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(1000 * rank + count)
        return torch.randint(1 - most, most, (count,), generator=rng, dtype=torch.int32)

    own = [of(comm.rank, count) for count in counts]
    pending = [comm.messages.sum_in_place(message, f"integers.{len(message)}") for message in own]
    for message, one in zip(own, pending, strict=True):
        assert one.wait() is message
        expected = torch.stack([of(rank, len(message)) for rank in range(comm.size)]).sum(0)
        assert message.dtype == torch.int32 and torch.equal(message.long(), expected)
        assert len(message) == 1 or not torch.equal(message.float().double(), expected.double())


def _check_maxima(comm: Communicator) -> None:
    last = comm.size - 1
    for dtype in (torch.int64, torch.float32, torch.float64):
        own = torch.tensor([comm.rank, -comm.rank, -3 - comm.rank], dtype=dtype)
        largest = comm.allreduce_max(own, f"max.{dtype}").wait()
        assert largest.dtype == dtype and largest.tolist() == [last, 0, -3]
    large = comm.allreduce_max(torch.tensor([BIG - comm.rank]), "max.large").wait()
    assert large.tolist() == [BIG]
    assert comm.allreduce_max(torch.tensor([-float("inf")]), "max.inf").wait().tolist() == [-float("inf")]


if __name__ == "__main__":
    job = connect()
    check_contract(job)
    horovod_backend.MOST_BYTES_AT_ONCE = 100  # now the same objects are too large for one message
    check_objects(job)
    print(f"rank {job.rank} of {job.size}: the contract holds", flush=True)
    job.close()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert "pt_gloo_runloop" not in threads, threads  # torch's would outlive the interpreter
