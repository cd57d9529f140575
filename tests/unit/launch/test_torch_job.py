"""Ranks of this host over torchrun's agent: their lines, their code, a request to stop, and nothing left."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from horovod_yolo.launch.hostfile import Host
from horovod_yolo.launch.torch_agent import code_of
from horovod_yolo.launch.torch_job import TorchJob

HERE = (Host("localhost", 2),)
RANK = """
import os, pathlib, sys, time
words = [os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MINE"], sys.stdin.read()]
os.write(1, (" ".join(words) + "\\n").encode())  # ranks share the pipe: two writes could lie apart
while not pathlib.Path(os.environ["HOROVOD_YOLO_STOP_FILE"]).exists():
    time.sleep(0.05)
sys.exit(3)
"""


@pytest.mark.parametrize("asked", [True, False], ids=["stopped", "killed"])
def test_ranks_of_this_host(tmp_path: Path, asked: bool) -> None:
    lines: list[tuple[bytes, bool]] = []
    environ = {**os.environ, "MINE": "a b"}
    before = psutil.Process().children(recursive=True)  # of other tests
    job = TorchJob(
        HERE,
        (sys.executable, "-c", RANK),
        environ,
        folder=tmp_path,
        write=lambda line, is_error: lines.append((line, is_error)),
    )
    with job:
        deadline = time.monotonic() + 60
        while len(lines) < 2:
            assert time.monotonic() < deadline, lines
            time.sleep(0.05)
        ranks = [process for process in psutil.Process().children(recursive=True) if process not in before]
        if asked:
            job.stop()
            assert job.wait() == 3, lines
    assert sorted(lines) == [(f"{rank} 2 a b \n".encode(), False) for rank in (0, 1)]
    assert not psutil.wait_procs(ranks, 10)[1]


@pytest.mark.parametrize(
    ("codes", "code"),
    [({3}, 3), ({2, 3}, 2), ({2, 1}, 2), ({1, 3}, 1), ({-9, 3}, 1), ({-9}, 1), ({-15, 3}, 3), ({-15}, 1)],
)
def test_the_code_of_a_host(codes: set[int], code: int) -> None:
    """A rank that its agent ends before the first step says 3, whatever the others have met."""
    assert code_of(codes) == code
