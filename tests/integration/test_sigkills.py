"""Promise 2, the hard way: SIGKILL at any moment, writes included, resume, and again; nothing is lost."""

from __future__ import annotations

import multiprocessing.process
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from horovod_yolo.checkpoint import resume, store
from tests.helpers import forked, ranks
from tests.helpers.runs import checkpoint, same_bits, steps

COMPARED = ("model", "ema", "optimizer", "early_stopping", "metrics", "step", "epoch", "sampler", "rng")
SECONDS_OF_A_RUN = 240


def start(words: list[str], output: Path) -> multiprocessing.process.BaseProcess:
    process = forked.server().Process(target=forked.train, args=(words, output))
    process.start()
    return process


def fresh(data: Path, run: Path) -> list[str]:
    return [
        "--data", str(data), "--cfg", "yolov5n", "--img", "64", "--batch", "6", "--epochs", "3",
        "--device", "cpu", "--commit-every", "1", "--workers", "0", "--noplots",
        "--project", str(run.parent), "--name", run.name, "--exist-ok",
    ]  # fmt: skip


@dataclass
class Whole:
    """The run that nobody disturbs."""

    run: Path
    seconds: float


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    run = tmp_path_factory.mktemp("whole") / "run"
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    imports = forked.server().Process(target=os.getpid)
    imports.start()
    imports.join()
    began = time.monotonic()
    process = start(fresh(digits, run), run.with_suffix(".output"))
    process.join(SECONDS_OF_A_RUN)
    assert process.exitcode == 0, run.with_suffix(".output").read_text()
    yield Whole(run, time.monotonic() - began)
    patch.undo()


@dataclass
class Killer:
    """Kills at random moments of a run, every other time while a checkpoint is being written."""

    whole: Whole
    rng: np.random.Generator
    kills: int = 0
    in_writes: int = 0

    def strike(self, process: multiprocessing.process.BaseProcess, run: Path) -> bool:
        """Kill the process, unless it ends first."""
        if self.kills % 2:
            wait_for_a_write(process, run / "weights", int(self.rng.integers(1, 8)))
            time.sleep(self.rng.uniform(0, 0.02))
        else:
            left = 1 - steps_done(run) / steps_done(self.whole.run)
            process.join(self.rng.uniform(0, max(left, 0.2) * self.whole.seconds))
        process.kill()
        process.join()
        if process.exitcode == 0:
            return False
        assert process.exitcode == -9, run.with_suffix(".output").read_text()
        self.kills += 1
        self.in_writes += any((run / "weights").glob(".*.tmp"))
        return True


def wait_for_a_write(process: multiprocessing.process.BaseProcess, weights: Path, number: int) -> None:
    """Until the n-th temporary file is seen, or the process ends."""
    seen = set(weights.glob(".*.tmp"))  # of processes killed before
    number += len(seen)
    while process.is_alive() and len(seen) < number:
        seen.update(weights.glob(".*.tmp"))
        time.sleep(0.001)


def newest_step(run: Path) -> int:
    """Of the checkpoint that a resumed run would start from; -1 where there is none."""
    if not any(path.exists() for path in resume.generations(run / "weights")):
        return -1
    state, _, passed_over = resume.load(run)
    assert not passed_over
    return int(state["step"])


def steps_done(run: Path) -> int:
    return len(steps(run)) if (run / "steps.csv").exists() else 0


def disturbed(data: Path, run: Path, killer: Killer, kills: int) -> None:
    """A run that is killed and resumed until it is over or the kills are used up; then it may end."""
    words, step = fresh(data, run), -1
    while killer.kills < kills:
        process = start(words, run.with_suffix(".output"))
        if not killer.strike(process, run):
            return
        found = newest_step(run)
        assert found >= step, "an older checkpoint than before"
        # While a step is made one commit may be in the making, and another wait for it.
        assert found >= steps_done(run) - 2, "more is lost than what was not committed"
        step = found
        words = fresh(data, run) if step < 0 else ["--resume", str(run)]
    process = start(words, run.with_suffix(".output"))
    process.join(SECONDS_OF_A_RUN)
    assert process.exitcode == 0, run.with_suffix(".output").read_text()


def rows_without_times(run: Path) -> list[list[str]]:
    return [line.split(",")[:-3] for line in (run / "results.csv").read_text().splitlines()]


def assert_equal(run: Path, other: Path) -> None:
    a, b = checkpoint(run), checkpoint(other)
    for part in COMPARED:
        assert same_bits(a[part], b[part]), part
    best = [store.read(folder / "weights" / "best.pt") for folder in (run, other)]
    assert same_bits(best[0]["ema"], best[1]["ema"]) and best[0]["epoch"] == best[1]["epoch"]
    assert (run / "steps.csv").read_text() == (other / "steps.csv").read_text()
    assert rows_without_times(run) == rows_without_times(other)
    assert not list((run / "weights").glob(".*")), "what killed processes left is cleared away"


@pytest.mark.parametrize(
    ("kills", "seed"), [(4, 0), *(pytest.param(50, seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))]
)
def test_nothing_is_lost(digits: Path, whole: Whole, tmp_path: Path, kills: int, seed: int) -> None:
    killer, runs = Killer(whole, np.random.default_rng(seed)), 0
    while killer.kills < kills:
        run = tmp_path / f"run{runs}"
        disturbed(digits, run, killer, kills)
        assert_equal(run, whole.run)
        shutil.rmtree(run)
        runs += 1
    print(f"{killer.kills} kills, {killer.in_writes} of them in a write, {runs} runs, seed {seed}")
    assert killer.in_writes >= max(kills // 10, 1)


def test_a_damaged_checkpoint_costs_its_steps_only(whole: Whole, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole.run, run)
    last = run / "weights" / "last.pt"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 3] ^= 4
    last.write_bytes(damaged)
    resumed = ranks.run(["train.py", "--resume", run], 1, "plain")
    assert resumed.code == 0, resumed.output
    assert f"passed over: {last}: damaged: its checksum does not fit its content" in resumed.output
    assert f"resume from {run / 'weights' / 'last.1.pt'}: epoch" in resumed.output
    assert last.with_name("last.pt.damaged").read_bytes() == damaged
    assert_equal(run, whole.run)
