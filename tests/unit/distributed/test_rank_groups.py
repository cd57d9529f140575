"""How the ranks of a group see that one of them is gone, and which groups there can be."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.mpi import OpenMpi
from horovod_yolo.distributed.rank_groups import Watch, join_group

SECONDS = 20.0


class Ranks:
    """Three ranks of a group, as they are connected: each with rank 0."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        self.lost = [threading.Event() for _ in range(3)]
        ends = [[first for first, _ in pairs], *([second] for _, second in pairs)]
        self.ends = ends
        self.watches = [Watch(mine, lost.set) for mine, lost in zip(ends, self.lost, strict=True)]

    def leave(self) -> None:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(Watch.close, self.watches))


def test_ranks_that_leave_in_order_are_not_lost() -> None:
    ranks = Ranks()
    ranks.leave()
    assert not any(lost.is_set() for lost in ranks.lost)


@pytest.mark.parametrize(("gone", "seen_by"), [(0, [1, 2]), (2, [0])])
def test_a_rank_whose_connections_end_is_lost_to_those_that_have_one(gone: int, seen_by: list[int]) -> None:
    ranks = Ranks()
    for connection in ranks.ends[gone]:  # as the kernel does for a process that ends
        connection.shutdown(socket.SHUT_RDWR)
    assert all(ranks.lost[rank].wait(SECONDS) for rank in seen_by)
    assert not any(ranks.lost[rank].is_set() for rank in {0, 1, 2} - {gone, *seen_by})
    ranks.leave()


@pytest.mark.parametrize(
    ("launched", "ranks", "words"),
    [
        (Alone(), 2, "what started this is no launcher"),
        (OpenMpi(0, 16, 0, 4), 5, "there are 16 ranks. give a number that divides 16"),
        (OpenMpi(0, 16, 0, 4), 0, "--ranks-per-trial 0"),
    ],
)
def test_groups_that_cannot_be(launched: Alone, ranks: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        join_group(launched, ranks, lambda: None)
