"""A disk that fills up or turns read-only while a run goes, for real: a small file system of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from horovod_yolo.checkpoint import resume
from tests.helpers import disk, ranks
from tests.helpers.disk import Disk
from tests.helpers.runs import steps

EPOCHS = 28
ROOM = "130m"  # a checkpoint has 21 MB: three generations, best.pt and one in the making need 94


@pytest.fixture(autouse=True)
def disks_can_be_made() -> None:
    reason = disk.why_not()
    if reason is not None:
        pytest.skip(f"LOUD SKIP: {reason}; runs on a full disk are not tested")


def train(data: Path, folder: Path, *more: str) -> list[str | Path]:
    return [
        sys.executable, ranks.REPOSITORY / "train.py", "--data", data, "--cfg", "yolov5n", "--img", "64",
        "--batch", "14", "--device", "cpu", "--workers", "0", "--project", folder, "--name", "run", *more,
    ]  # fmt: skip


def wait_for(what: str, holds: Callable[[], bool], job: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert job.poll() is None, output.read_text()
        assert time.monotonic() < deadline, f"{what} did not come:\n{output.read_text()}"
        time.sleep(0.02)


def test_a_disk_that_is_full_and_then_read_only_for_a_while(digits: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with Disk(tmp_path / "disk", ROOM) as small:
        flags = ("--noplots", "--noval", "--commit-every", "1", "--epochs", str(EPOCHS))
        job = small.start(train(digits, small.folder, *flags), output, OMP_NUM_THREADS="1")
        run = small.inside / "run"

        def said(text: str) -> int:
            return output.read_text().count(text)

        def wait_for_text(text: str, times: int = 1) -> None:
            wait_for(f"{times} x {text!r}", lambda: said(text) >= times, job, output)

        wait_for("a checkpoint", (run / "weights" / "last.pt").exists, job, output)
        for breaks, reason, mends in (
            (small.fill, "No space left on device", small.free),
            (lambda: small.set_read_only(True), "Read-only file system", lambda: small.set_read_only(False)),
        ):
            before = resume.load(run)[0]["step"]
            recovered = said("checkpoints are written again")
            refused = f"CHECKPOINT NOT WRITTEN to {small.folder}/run/weights: {reason}"

            def broken(breaks: Callable[[], None] = breaks, refused: str = refused) -> bool:
                breaks()  # again and again: a rotation may free the room of one checkpoint
                return said(refused) > 0

            wait_for(refused, broken, job, output)
            wait_for_text("images/s", said("images/s") + 2)  # epochs go by
            state, _, passed_over = resume.load(run)
            assert state["step"] >= before and not passed_over
            mends()
            wait_for_text("checkpoints are written again", recovered + 1)
            assert resume.load(run)[0]["step"] > state["step"]
        assert job.wait(120) == 0, output.read_text()
        last, _, passed_over = resume.load(run)
        assert (last["epoch"], passed_over) == (EPOCHS, [])
        assert [row["step"] for row in steps(run)] == list(range(1, last["step"] + 1))
        epochs = (run / "results.csv").read_text().splitlines()[1:]
        assert [row.split(",")[0] for row in epochs] == [str(k) for k in range(EPOCHS)]
        assert (run / "results.json").exists() and not list(run.glob("**/.*"))
    assert output.read_text().count("CHECKPOINT NOT WRITTEN") < 20, "loud, but not a line a step"


def test_a_disk_that_is_full_from_start_to_end(digits: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with Disk(tmp_path / "disk", "1m") as small:
        small.fill()
        caches = ("--cache", "disk", "--cache-dir", str(small.folder / "cache"))
        job = small.start(train(digits, small.folder, "--epochs", "2", *caches), output, OMP_NUM_THREADS="1")
        code = job.wait(120)
        left = [path.name for path in small.inside.rglob("*") if path.is_file() and path.stat().st_size]
    said = output.read_text()
    assert code == 1, said
    assert "Traceback" not in said
    assert said.count("images/s  |  P") == 2, "two epochs are trained and validated"
    run = small.folder / "run"
    full = "No space left on device"
    for warning in (
        f"{small.folder / 'cache' / 'annotations'} takes no more ({full}): the annotations are kept",
        f"images cannot be cached in {small.folder}",
        f"{run / 'config.yaml'}: {full}; training goes on",
        f"{run / 'steps.csv'}: {full}",
        f"{run / 'results.csv'}: {full}",
        f"{run / 'events'}",
        f"CHECKPOINT NOT WRITTEN to {run / 'weights'}: {full}",
        f"{run}: {full}; the report is left out",
    ):
        assert warning in said, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"its best.pt and last.pt could not be written ({full})" in errors[0]
    assert f"{run / 'results.json'} could not be written ({full})" in errors[0]
    assert left == ["filler"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["after a checkpoint", "before the first"])
def test_a_stop_on_request_while_the_disk_is_full(digits: Path, tmp_path: Path, when: str) -> None:
    """It says which checkpoint there is, and with room again the run goes on from that."""
    output = tmp_path / "output"
    epochs = 12
    with Disk(tmp_path / "disk", ROOM) as small:
        run, there_is_one = small.inside / "run", when == "after a checkpoint"
        last = run / "weights" / "last.pt"
        if not there_is_one:
            small.fill()
        flags = ("--noplots", "--noval", "--commit-every", "1", "--epochs", str(epochs))
        job = small.start(train(digits, small.folder, *flags), output, OMP_NUM_THREADS="1")

        def refused() -> bool:
            if not there_is_one or last.exists():
                small.fill()  # again and again: a rotation may free the room of one checkpoint
            return "CHECKPOINT NOT WRITTEN" in output.read_text()

        wait_for("a refused checkpoint", refused, job, output)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 1, output.read_text()
        said = output.read_text()
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("stopped on request after step")]
        assert "ITS CHECKPOINT COULD NOT BE WRITTEN (No space left on device)" in line
        there = small.folder / "run" / "weights" / "last.pt"
        small.free()
        if not there_is_one:
            assert f"there is no checkpoint to resume from: {there}: No such file" in line
            assert not last.exists()
            return
        step, epoch = (resume.load(run)[0][name] for name in ("step", "epoch"))
        folder = small.folder / "run"
        assert f"{there} is of step {step}; mend the disk and go on from there with --resume {folder}" in line
        again = [sys.executable, ranks.REPOSITORY / "train.py", "--resume", folder]
        assert small.start(again, output, OMP_NUM_THREADS="1").wait(120) == 0, output.read_text()
        assert f"resume from {there}: epoch {epoch + 1}, step {step}" in output.read_text()
        rows, end = steps(run), resume.load(run)[0]
        assert [row["step"] for row in rows] == list(range(1, end["step"] + 1))
        assert (end["epoch"], sum(row["images"] for row in rows)) == (epochs, 28 * epochs)
