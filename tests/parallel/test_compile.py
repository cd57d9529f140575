"""``--compile`` of whole runs with real ranks: the same bits on one and two, and no rank without a compiler.

28 images in batches of 12 and two slices: passes of 6 are compiled, those of 2 of the last batch are not.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.helpers import ranks
from tests.helpers.runs import checkpoint, sha256

FLAGS = (
    "--cfg yolov5n --img 64 --batch 12 --slices 2 --epochs 2 --noplots --workers 0 --compile --deterministic"
)


def test_all_ranks_end_where_one_could_not_compile(digits: Path, tmp_path: Path) -> None:
    place = ["--data", digits, "--project", tmp_path, "--name", "none"]
    job = ranks.run(["train.py", *place, *FLAGS.split()], 2, CXX="no-such-compiler")
    assert job.code != 0, job.output  # of horovodrun, whose ranks end with 2
    said = [line for line in job.output.splitlines() if "--compile" in line]
    assert len(said) == 1 and "no no-such-compiler" in said[0], job.output
    # horovodrun prints one of its own.
    of_ranks = [line for line in job.output.splitlines() if line.startswith("[")]
    assert not any("Traceback" in line for line in of_ranks) and not (tmp_path / "none").exists()
    alone = ranks.run(["train.py", *place, *FLAGS.split()], 1, "plain", CXX="no-such-compiler")
    assert alone.code == 2 and alone.output.count("--compile") == 2, alone.output  # what, and what to do


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_rank_and_two_end_with_the_same_bits(digits: Path, tmp_path: Path) -> None:
    """So does a run that is killed and goes on, on another number. Jobs find the code of earlier ones."""
    found: dict[int, str] = {}
    cache, before = tmp_path / "code", set[str]()
    for size, launcher in ((1, "plain"), (2, "gloo")):
        place = ["--data", digits, "--project", tmp_path, "--name", launcher, "--cache-dir", cache]
        job = ranks.run(["train.py", *place, *FLAGS.split()], size, launcher, timeout=3000)
        assert job.code == 0, job.output
        assert ranks.results(tmp_path / launcher)["bitwise"] == "yes"
        assert not [key for key in checkpoint(tmp_path / launcher)["model"] if "_orig_mod" in key]
        assert "code for passes of 6 images" in job.output and "Stalled" not in job.output
        found[size] = sha256(tmp_path / launcher)
        kernels = {path.name for path in cache.rglob("*.so")}
        assert kernels and (size == 1 or kernels == before)
        before = kernels
    assert found[1] == found[2]

    run = tmp_path / "killed"
    place = ["--data", digits, "--project", tmp_path, "--name", run.name, "--cache-dir", cache]
    job = ranks.start(["train.py", *place, *FLAGS.split(), "--commit-every", "1"], 2)
    deadline = time.monotonic() + 1000
    while not (run / "weights/last.pt").exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    assert ranks.kill_ranks(job).code != 0
    assert 0 < checkpoint(run)["step"] < 6
    again = ranks.run(["train.py", "--resume", run], 1, "plain", timeout=3000)
    assert again.code == 0, again.output
    assert "code for passes of 6 images" in again.output and sha256(run) == found[1]
    replay = ["-m", "horovod_yolo.cli", "replay", run, "--steps", "6", "--project", tmp_path]
    replayed = ranks.run(replay, 1, "plain", timeout=3000)
    assert replayed.code == 0, replayed.output
