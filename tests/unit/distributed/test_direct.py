"""Small sums over real connections between the threads of this process, each of which is a rank."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import torch

from horovod_yolo.distributed import direct
from horovod_yolo.distributed.direct import MOST_BYTES, TYPES, GoneError, SocketSums, partners

HERE = "127.0.0.1"
SIZES = (2, 3, 4, 5, 7, 8)


class Meeting:
    """Where the ranks tell each other objects, as they do through Horovod."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=20)
        self._told: list[Any] = [None] * size

    def everyones(self, rank: int, value: Any) -> list[Any]:
        self._told[rank] = value
        self._barrier.wait()
        told = list(self._told)
        self._barrier.wait()
        return told


def world(
    size: int, job: Callable[[int, SocketSums], Any], address: Callable[[int], str] = lambda rank: HERE
) -> list[Any]:
    """What ``job`` gives on each rank."""
    meeting = Meeting(size)

    def rank(number: int) -> Any:
        sums = SocketSums.connect(
            number, size, address(number), lambda value: meeting.everyones(number, value), look
        )
        try:
            return job(number, sums)
        finally:
            sums.close()

    with ThreadPoolExecutor(size) as pool:
        return [done.result(30) for done in [pool.submit(rank, number) for number in range(size)]]


def look(waited_s: float, whom: str) -> None:
    assert waited_s < 20


def share(rank: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    return (1000 * numbers).to(dtype)


@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_have_the_same_bits_in_every_run(size: int) -> None:
    def job(rank: int, sums: SocketSums) -> list[torch.Tensor]:
        own = [share(rank, count, dtype) for dtype in TYPES for count in (0, 1, 5, 3000)]
        return [sums.start(one, f"sum {number}", torch.add).wait() for number, one in enumerate(own)]

    first, again = world(size, job), world(size, job)
    for results in (*first, *again):
        assert all(torch.equal(one, of_0) for one, of_0 in zip(results, first[0], strict=True))
    expected = [
        sum(share(rank, count, dtype).double() for rank in range(size))
        for dtype in TYPES
        for count in (0, 1, 5, 3000)
    ]
    for found, exact in zip(first[0], expected, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_several_are_under_way_and_are_waited_for_in_any_order(size: int) -> None:
    """More than the connections hold, in other orders on each rank; shapes come back."""

    def job(rank: int, sums: SocketSums) -> None:
        own = torch.full((4000, 1), float(rank + 1))
        pending = [sums.start(own * number, f"sum {number}", torch.add) for number in range(12)]
        largest = sums.start(torch.tensor(rank), "largest", torch.maximum)
        if rank % 2:
            sums.settle()
        assert largest.wait().item() == size - 1 and largest.wait().shape == ()
        for number in reversed(range(12)):
            total = pending[number].wait()
            assert total.shape == own.shape and (total == number * size * (size + 1) / 2).all()

    assert 2 * MOST_BYTES < 12 * 16_000
    world(size, job)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_leaves_is_missed_by_all(size: int, lost: int) -> None:
    def job(rank: int, sums: SocketSums) -> bool:
        sums.start(torch.zeros(3), "first", torch.add).wait()
        if rank == lost:
            return True
        try:
            for number in range(3):
                sums.start(torch.zeros(3), f"later {number}", torch.add).wait()
        except GoneError:
            with pytest.raises(GoneError):
                sums.start(torch.zeros(3), "after that", torch.add).wait()
            return True
        return False

    assert all(world(size, job))


def test_a_late_rank_is_waited_for_and_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looking raises ends the wait."""
    monkeypatch.setattr(direct, "SECONDS_BETWEEN_LOOKS", 0.02)
    looks: list[float] = []

    def give_up(waited_s: float, whom: str) -> None:
        assert whom == "rank 1"
        looks.append(waited_s)
        if len(looks) == 3:
            raise GoneError("it is too late")

    one, other = socket.socketpair()
    with one, other:
        waiting = SocketSums(0, 2, {1: one}, give_up)
        with pytest.raises(GoneError, match="too late"):
            waiting.start(torch.zeros(3), "sum", torch.add).wait()
    assert looks == sorted(looks) and looks[0] > 0


def test_ranks_that_come_to_different_sums_say_so() -> None:
    def job(rank: int, sums: SocketSums) -> str:
        with pytest.raises(RuntimeError) as caught:
            sums.start(torch.zeros(3), "one" if rank else "other", torch.add).wait()
        return str(caught.value)

    assert any("ranks 0 and 1 came to different sums" in said or "1 and 0" in said for said in world(2, job))


def test_a_stranger_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing, and one that does not know the secret, come before the ranks do."""
    monkeypatch.setattr(direct, "_SECONDS_OF_A_STRANGER", 0.1)
    strangers: list[socket.socket] = []
    meeting = Meeting(2)

    def rank(number: int) -> float:
        def everyones(value: Any) -> list[Any]:
            told = meeting.everyones(number, value)
            if number == 0 and isinstance(value, tuple):
                for words in (b"", bytes(20), b"GET / HTTP/1.0\r\n\r\n"):
                    strangers.append(socket.create_connection(told[0][1]))
                    strangers[-1].sendall(words)
            if isinstance(value, tuple):
                meeting.everyones(number, None)  # rank 1 calls after them
            return told

        sums = SocketSums.connect(number, 2, HERE, everyones, look)
        total = sums.start(torch.tensor(1.0 + number), "sum", torch.add).wait().item()
        sums.close()
        return total

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(rank, range(2))) == [3.0, 3.0]
    for stranger in strangers:
        with stranger:
            stranger.settimeout(5)
            with suppress(ConnectionResetError):
                assert stranger.recv(100) == b""


def test_no_way_between_two_ranks_is_known_to_all() -> None:
    def job(rank: int, sums: SocketSums) -> None:
        raise AssertionError("there are no connections")

    with pytest.raises(OSError, match=r"rank 1 at 198\.51\.100\.7"):
        world(3, job, lambda rank: "198.51.100.7" if rank == 1 else HERE)


def test_partners_know_each_other() -> None:
    for size in range(2, 70):
        of = [partners(rank, size) for rank in range(size)]
        assert all(rank in of[other] for rank in range(size) for other in of[rank])
        assert all(0 <= other < size and other != rank for rank in range(size) for other in of[rank])
        assert max(map(len, of)) <= size.bit_length()
