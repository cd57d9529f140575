"""Late ranks are named, once for each call, by the first of those that wait."""

from __future__ import annotations

import logging
import socket
import time

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from horovod_yolo.distributed.lateness import Lateness


def test_who_is_late_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    board = HashStore()
    ranks = [Lateness(rank, 3, board, 30) for rank in range(3)]
    for _ in range(2):
        for rank in ranks:
            rank.come()
            rank.go()
    ranks[1].come()
    ranks[2].come()
    now = time.monotonic()
    for rank in ranks:
        rank.tell()
    for rank in ranks:
        rank.look(now + 29)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        for rank in (*ranks, *ranks):
            rank.look(now + 31)
    assert caplog.messages == [f"late: rank 0 on {socket.gethostname()}; others have waited for 31 s"]
    ranks[0].come()
    ranks[0].tell()
    caplog.clear()
    ranks[1].look(now + 62)
    assert caplog.messages == []


def test_a_rank_that_never_told_anything_is_late_too(caplog: pytest.LogCaptureFixture) -> None:
    board = HashStore()
    first = Lateness(0, 2, board, 30)
    first.come()
    first.tell()
    first.look(time.monotonic() + 40)
    assert caplog.messages == ["late: rank 1 on ?; others have waited for 40 s"]
