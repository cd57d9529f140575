"""A job that is asked to stop writes a checkpoint, exits with 3 within seconds, and goes on to the bit.

So does one that is killed, from its last commit. Each time other ranks go on: the slices stay.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from horovod_yolo.data.digits import make_digits
from tests.helpers import ranks
from tests.helpers.runs import checkpoint, same_bits, sha256, steps

WORLD_SIZE = 2  # at the start: so many slices
SECONDS = 30  # the promise is 10, on a machine that does nothing else
COMPARED = ("model", "ema", "optimizer", "early_stopping", "metrics", "step", "epoch", "sampler")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training images, and a validation that lasts long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digits(folder, images=50, size=64, seed=2)
    (folder / "data.yaml").write_text(
        (folder / "data.yaml").read_text().replace("val: images/val", "val: images")
    )
    return folder / "data.yaml"


def arguments(data: Path, folder: Path, name: str) -> list[str | Path]:
    return [
        "train.py", "--data", data, "--cfg", "yolov5n", "--img", "64", "--batch", "8", "--epochs", "2",
        "--commit-every", "3", "--workers", "0", "--project", folder, "--name", name,
    ]  # fmt: skip


def wait_until(
    job: subprocess.Popen[str], ready: Callable[[], bool], what: str, seconds: float = 120
) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def stop(job: subprocess.Popen[str], number: signal.Signals, victims: Sequence[int]) -> str:
    """Signal some ranks; all must have left with 3 in time. What the job printed."""
    everyone = ranks.processes(job)
    asked = time.monotonic()
    for pid in victims:
        os.kill(pid, number)
    finished = ranks.finish(job, 60)
    seconds = time.monotonic() - asked
    # A rank that horovodrun kills, because it saw another end first, has no line.
    codes = re.findall(r"Process \d+ exit with status code (\d+)", finished.output)
    assert set(codes) == {"3"}, finished.output
    assert seconds < SECONDS, finished.output
    assert "Traceback" not in re.split(r"Process \d+ exit", finished.output)[0]  # then horovodrun has its own
    ranks.wait_until_gone(everyone)
    return finished.output


def test_stopped_or_killed_anywhere_and_resumed_equals_undisturbed(data: Path, tmp_path: Path) -> None:
    """Without synchronised batch norm, so that each rank has statistics of its own."""
    whole = ranks.run([*arguments(data, tmp_path, "whole"), "--noplots"], WORLD_SIZE)
    assert whole.code == 0, whole.output
    run = tmp_path / "stopped"

    job = ranks.start(arguments(data, tmp_path, "stopped"), WORLD_SIZE)
    wait_until(job, lambda: (run / "steps.csv").exists() and len(steps(run)) >= 2, "step 2")
    printed = stop(job, signal.SIGUSR1, ranks.rank_processes(job)[1:])  # only one rank hears of it
    (line,) = re.findall(r"stopped on request after step (\d+), checkpoint (\S+); go on with", printed)
    state = checkpoint(run)
    assert (state["step"], str(run / "weights" / "last.pt")) == (int(line[0]), line[1])

    job = ranks.start(["train.py", "--resume", run], 1)
    of_first_epoch = sum(step["epoch"] == 0 for step in steps(tmp_path / "whole"))
    wait_until(job, lambda: len(steps(run)) >= of_first_epoch, "the first validation")
    stop(job, signal.SIGTERM, ranks.rank_processes(job))
    assert checkpoint(run)["sampler"] == {"epoch": 0, "batch": 5}  # its validation was left

    job = ranks.start(["train.py", "--resume", run], 3)
    wait_until(job, lambda: checkpoint(run)["step"] > of_first_epoch, "a commit in the second epoch")
    killed = ranks.kill_ranks(job)
    assert killed.code != 0
    assert "2 slices on 3 ranks: some have none, and wait for the others" in killed.output
    assert checkpoint(run)["sampler"]["batch"] > 0

    job = ranks.start(["train.py", "--resume", run], WORLD_SIZE)
    wait_until(job, (run / "results.json").exists, "the results")
    printed = stop(job, signal.SIGTERM, ranks.rank_processes(job))  # while the curves are drawn
    assert f"stopped on request after the last step; --resume {run} writes the results" in printed
    assert not (run / "report.html").exists()
    a, b = checkpoint(run), checkpoint(tmp_path / "whole")
    for part in COMPARED:
        assert same_bits(a[part], b[part]), part
    assert steps(run) == steps(tmp_path / "whole")
    assert sha256(run) == sha256(tmp_path / "whole")

    done = ranks.run(["train.py", "--resume", run], 1, "plain")
    assert done.code == 0, done.output
    assert (run / "report.html").exists()


def hears(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_request_before_the_first_step(data: Path, tmp_path: Path) -> None:
    job = ranks.start(arguments(data, tmp_path, "early"), WORLD_SIZE)

    def all_hear() -> bool:
        found = ranks.rank_processes(job)
        return len(found) == WORLD_SIZE and all(map(hears, found))

    wait_until(job, all_hear, "ranks that listen")
    printed = stop(job, signal.SIGTERM, ranks.rank_processes(job))
    assert "stopped on request before the first step; nothing was trained" in printed
    assert not (tmp_path / "early" / "weights" / "last.pt").exists()


@pytest.mark.parametrize(
    ("launcher", "number"),
    [("--gloo", signal.SIGINT), pytest.param("--mpirun", signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_launch_passes_a_request_on_and_the_code_back(
    data: Path, tmp_path: Path, launcher: str, number: signal.Signals
) -> None:
    """No signal reaches the ranks: both launchers would end them."""
    train = arguments(data, tmp_path, "run")[1:]
    train[train.index("--workers") + 1] = "1"
    job = subprocess.Popen(
        [sys.executable, "-m", "horovod_yolo.cli", "launch", "--hosts", "localhost:2", launcher, "--",
         "train", *map(str, train)],
        cwd=ranks.REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    run = tmp_path / "run"
    wait_until(job, lambda: (run / "steps.csv").exists() and len(steps(run)) >= 1, "step 1")
    everyone, asked = ranks.processes(job), time.monotonic()
    job.send_signal(number)
    finished = ranks.finish(job, 60)
    assert finished.code == 3, finished.output
    assert time.monotonic() - asked < SECONDS
    assert "asked to stop: waiting for" in finished.output
    assert f"checkpoint {run}/weights/last.pt" in finished.output
    ranks.wait_until_gone(everyone)


@pytest.mark.slow
def test_slurm_signals_every_process_of_a_step(data: Path, tmp_path: Path) -> None:
    """Also data workers, their server and the guard of each rank, which go on until their rank is done."""
    train = arguments(data, tmp_path, "run")
    train[train.index("--workers") + 1] = "1"
    job, run = ranks.start(train, 2), tmp_path / "run"
    wait_until(job, lambda: (run / "steps.csv").exists() and len(steps(run)) >= 1, "step 1")
    everyone = ranks.processes(job)
    found = ranks.rank_processes(job)
    for pid in found:  # grows: children after their parents
        found += [child for child in everyone if parent_of(child) == pid and child not in found]
    assert len(found) >= 2 * 5  # a rank, its guard, the tracker, the server and a worker
    for pid in found:
        os.kill(pid, signal.SIGUSR1)
    finished = ranks.finish(job, 60)
    assert re.findall(r"Process \d+ exit with status code (\d+)", finished.output) == ["3", "3"], (
        finished.output
    )
    assert "guard" not in finished.output and "resource_tracker" not in finished.output
    ranks.wait_until_gone(everyone)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
