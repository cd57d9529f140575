"""A command of ours on every rank of a world in one process, from its arguments to its exit code."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest

from horovod_yolo.assembly import job
from horovod_yolo.cli import own_ranks
from horovod_yolo.process import logs
from horovod_yolo.process.stop import StopRequest
from tests.helpers.world import WorldCommunicator, run_world


def exit_codes(size: int, command: Callable[[], int]) -> list[int]:
    """What ``command`` gives on each rank.

    Left out is what is a process's own: handlers of signals, output and its format, the number of threads,
    and that a process without a launcher looks whether it is to start ranks.
    """
    ranks: dict[threading.Thread, WorldCommunicator] = {}

    def connect() -> WorldCommunicator:
        return ranks[threading.current_thread()]

    def deaf(_: StopRequest) -> AbstractContextManager[None]:
        return nullcontext()

    def rank(comm: WorldCommunicator) -> int:
        ranks[threading.current_thread()] = comm
        return command()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_ranks, "_world_to_start", lambda *_: None)
        patch.setattr(job, "connect", connect)
        patch.setattr(job, "listening", deaf)
        patch.setattr(job, "outlive_lost_output", lambda: None)
        patch.setattr(job, "share_cores", lambda *_: None)
        patch.setattr(logs, "set_up", lambda *_, **__: None)
        return run_world(size, rank)
