"""A process that writes checkpoints is killed at random moments: what was written stays."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from horovod_yolo.checkpoint import resume, store
from tests.helpers import forked

KILLS = 100
KIBIBYTES = 512


def acknowledged(file: Path) -> int:
    """The number of the last write that returned. The file has whole lines only: a write of a few bytes."""
    return int(file.read_text().split()[-1]) if file.exists() and file.stat().st_size else 0


def test_killed_at_a_hundred_moments(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights, numbers = tmp_path / "weights", tmp_path / "numbers"
    weights.mkdir()
    hits = 0
    for kill in range(KILLS):
        before, leftovers = acknowledged(numbers), set(weights.glob(".*.tmp"))
        process = forked.server().Process(target=forked.write_checkpoints, args=(weights, numbers, KIBIBYTES))
        process.start()
        while process.is_alive() and acknowledged(numbers) == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        while process.is_alive() and kill % 2 and set(weights.glob(".*.tmp")) <= leftovers:
            time.sleep(0.0005)  # every other one is killed in a write
        process.kill()
        process.join()
        assert process.exitcode == -9
        least = acknowledged(numbers)
        state, path, passed_over = resume.load(tmp_path)
        assert (path, passed_over) == (weights / "last.pt", [])
        assert state["step"] in (least, least + 1), "the last write that returned, or the one it was making"
        assert (state["optimizer"] == state["step"]).all()
        steps = [store.read(file)["step"] for file in resume.generations(weights) if file.exists()]
        assert steps == sorted(steps, reverse=True) and len({*steps, -1}) >= min(state["step"], 3)
        unfinished = list(weights.glob(".*.tmp"))
        assert len(unfinished) <= 2, "each writer clears away what the one before it left"
        hits += bool(unfinished)
    print(f"{hits} of {KILLS} kills hit a write, {least} writes")
    assert hits >= KILLS // 5
