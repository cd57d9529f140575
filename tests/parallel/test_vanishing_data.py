"""Images that break or vanish and data workers that die while two ranks train.

That any number of ranks makes the same of broken images: tests/unit/assembly/test_run_over_ranks.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from horovod_yolo.data.spec import load_data_yaml
from tests.helpers import ranks
from tests.helpers.runs import steps
from tests.helpers.scanned import annotations_of, take_as_unchanged
from tests.parallel.test_bad_input import RANK

FLAGS = (
    "--cfg yolov5n --img 64 --batch 13 --noval --noplots --sync-bn --compression none --workers 1 --exist-ok"
)
GENTLE = "mosaic: 0.5\nmixup: 0.3\nlr0: 0.0005\nwarmup_bias_lr: 0.0\n"  # see test_world_size.py
BROKEN = {"train": (3, 17), "val": (2,)}  # as many as may be: a tenth of 28, and one of 7


def break_images(data: Path, cache: Path) -> list[Path]:
    """In the moment after the scan: a start from its cache does not see it."""
    spec, broken = load_data_yaml(data), []
    for split, positions in BROKEN.items():
        found = annotations_of(spec, split, cache / "annotations")
        broken += [found.image_path(i) for i in positions]
    for path in broken:
        path.write_bytes(bytes(path.stat().st_size))
    for split in BROKEN:
        take_as_unchanged(spec, split, cache / "annotations")
    return broken


def arguments(folder: Path, name: str, epochs: int = 2) -> list[str | Path]:
    return [
        "--data", folder / "digits" / "data.yaml", "--hyp", folder / "hyp.yaml",
        "--cache-dir", folder / "cache", "--project", folder, "--name", name,
        "--epochs", str(epochs), *FLAGS.split(),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A folder for runs with the data in it, and which of its images are broken."""
    folder = tmp_path_factory.mktemp("vanishing")
    shutil.copytree(digits.parent, folder / "digits")
    (folder / "hyp.yaml").write_text(GENTLE)
    return folder, break_images(folder / "digits" / "data.yaml", folder / "cache")


@pytest.fixture(scope="module")
def two_ranks(place: tuple[Path, list[Path]]) -> Path:
    """A run on two ranks, in which no sample is missing and each rank says once what it replaced."""
    folder, broken = place
    job = ranks.run(["train.py", *arguments(folder, "two")], 2)
    assert job.code == 0, job.output
    assert [row["images"] for row in steps(folder / "two")] == [13, 13, 2] * 2
    for path in broken:
        lines = [line for line in job.output.splitlines() if f"image lost: {path}: " in line]
        by_rank = [sum(line.startswith(f"[{rank}]<stdout>:") for line in lines) for rank in (0, 1)]
        assert len(lines) == sum(by_rank) and max(by_rank) == 1, lines
    return folder / "two"


def wait_until(
    condition: Callable[[], object], job: ranks.subprocess.Popen[str], seconds: float = 120
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_done(run: Path) -> int:
    return len(steps(run)) if (run / "steps.csv").exists() else 0


def data_workers(rank: int) -> list[psutil.Process]:
    """The children of a rank's fork server."""
    return [worker for server in psutil.Process(rank).children() for worker in server.children()]


def test_a_killed_data_worker_changes_no_bit(place: tuple[Path, list[Path]], two_ranks: Path) -> None:
    folder, _ = place
    shutil.rmtree(folder / "killed", ignore_errors=True)
    job = ranks.start(["train.py", *arguments(folder, "killed")], 2)
    wait_until(lambda: steps_done(folder / "killed") >= 2, job)
    victim = data_workers(ranks.rank_processes(job)[1])[0]
    victim.kill()
    finished = ranks.finish(job, 120)
    assert finished.code == 0, finished.output
    assert finished.output.count(f"data worker {victim.pid} was killed by SIGKILL") == 1
    assert steps(folder / "killed") == steps(two_ranks)


def test_workers_that_go_on_dying_end_the_job_and_are_named(place: tuple[Path, list[Path]]) -> None:
    folder, _ = place
    job = ranks.start(["train.py", *arguments(folder, "dying", epochs=1000)], 2)
    wait_until(lambda: steps_done(folder / "dying") >= 1, job)
    rank = ranks.rank_processes(job)[0]
    killed: set[int] = set()
    for _ in range(2):
        wait_until(lambda: [w for w in data_workers(rank) if w.pid not in killed], job)
        for worker in data_workers(rank):
            if worker.pid not in killed:
                os.kill(worker.pid, signal.SIGKILL)
                killed.add(worker.pid)
    finished = ranks.finish(job, 60)
    assert finished.code != 0
    (line,) = [line for line in finished.output.splitlines() if "the second of this rank that died" in line]
    assert "error: rank " in line and "SIGKILL" in line and "lower --workers" in line
    assert any(str(pid) in line for pid in killed)
    assert "Traceback" not in finished.output.split(line)[0]


def test_a_data_set_that_is_gone_ends_the_job_on_all_ranks(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits.parent, tmp_path / "digits")
    (tmp_path / "hyp.yaml").write_text(GENTLE)
    job = ranks.start(["-c", RANK, tmp_path, *arguments(tmp_path, "gone", epochs=1000)], 2)
    wait_until(lambda: steps_done(tmp_path / "gone") >= 2, job)
    (tmp_path / "digits" / "images").rename(tmp_path / "elsewhere")
    begun = time.monotonic()
    finished = ranks.finish(job, 60)
    assert time.monotonic() - begun < 30
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2", "2"], finished.output
    said = [line for line in finished.output.splitlines() if "error: " in line and "stderr" in line]
    assert len(said) == 1, finished.output
    assert "images cannot be read any more" in said[0] and "no such file" in said[0]
    assert "still mounted" in said[0] and "--resume" in said[0]
