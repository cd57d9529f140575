"""Images that vanish while an elastic job changes its ranks: the epochs stay whole and in their order.

The two ranks are on one machine under two of its names, which Horovod takes for two hosts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers import ranks
from tests.helpers.runs import checkpoint, largest_loss_difference, steps
from tests.parallel.test_vanishing_data import GENTLE, break_images

TRAINING = ranks.REPOSITORY / "train.py"
ONE, OTHER = "localhost", "127.0.0.1"
IMAGES = 28
TRAIN = "--cfg yolov5n --img 64 --noval --noplots --sync-bn --compression none --workers 0 --exist-ok"


@pytest.fixture
def place(digits: Path, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A folder for runs with the data in it, and which of its images are broken since the scan."""
    shutil.copytree(digits.parent, tmp_path / "digits")
    (tmp_path / "hyp.yaml").write_text(GENTLE)
    return tmp_path, break_images(tmp_path / "digits" / "data.yaml", tmp_path / "cache")


def arguments(folder: Path, name: str, flags: str) -> list[str | Path]:
    return [
        "--data", folder / "digits" / "data.yaml",
        "--hyp", folder / "hyp.yaml", "--cache-dir", folder / "cache", "--project", folder, "--name", name,
        *TRAIN.split(), *flags.split(),
    ]  # fmt: skip


class ElasticJob:
    """``horovodrun`` with a rank on each of some hosts. The context ends what is left of it."""

    def __init__(self, folder: Path, hosts: list[str], flags: str, script: Path = TRAINING) -> None:
        self.run = folder / "run"
        self._log = folder / "job.log"
        self._hosts = folder / "hosts.sh"  # for Horovod; our own script sees that both names are this host
        self.allow(hosts)
        launch = (
            f"horovodrun --disable-cache --network-interfaces lo --gloo-timeout-seconds 30 -np {len(hosts)} "
            f"--min-np 1 --max-np 2 --host-discovery-script {self._hosts}"
        )
        self._command = [
            *launch.split(), sys.executable, str(script), "--elastic",
            *map(str, arguments(folder, "run", flags)),
        ]  # fmt: skip
        self._environment = {
            **os.environ,
            "PATH": f"{ranks.BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "XDG_RUNTIME_DIR": str(folder),
        }

    def __enter__(self) -> ElasticJob:
        self._temporary = tempfile.TemporaryDirectory(prefix="job-")  # with what killed ranks leave
        self._environment["TMPDIR"] = self._temporary.name
        with self._log.open("wb") as file:
            self._job: subprocess.Popen[str] = subprocess.Popen(
                self._command, cwd=ranks.REPOSITORY, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, text=True, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        if self._job.poll() is None:
            ranks.kill(self._job)
        self._temporary.cleanup()

    def allow(self, hosts: list[str]) -> None:
        """Make the discovery script say which hosts there are. It may be running meanwhile."""
        new = self._hosts.with_suffix(".new")
        new.write_text("#!/bin/sh\n" + "".join(f"echo {name}:1\n" for name in hosts))
        new.chmod(0o755)
        new.replace(self._hosts)

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def steps(self) -> int:
        """Rows of the table."""
        return len(steps(self.run)) if (self.run / "steps.csv").exists() else 0

    def until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not ready():
            assert self._job.poll() is None, f"the job ended with {self._job.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def kill_rank_on(self, host: str) -> None:
        (rank,) = {
            pid
            for pid in ranks.rank_processes(self._job)
            if psutil.Process(pid).environ().get("HOROVOD_HOSTNAME") == host
        }
        psutil.Process(rank).kill()

    def wait(self) -> int:
        """Exit code of the launcher."""
        return self._job.wait(120)

    def finish(self) -> None:
        assert self.wait() == 0, self.output


def images_of_epochs(run: Path) -> list[int]:
    """By the table, whose steps must follow one another."""
    rows = steps(run)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "a step twice or none"
    epochs = range(int(rows[-1]["epoch"]) + 1)
    return [int(sum(row["images"] for row in rows if row["epoch"] == epoch)) for epoch in epochs]


@pytest.mark.slow
def test_survivors_and_newcomers_have_the_images_of_the_start(place: tuple[Path, list[Path]]) -> None:
    """A rank comes after images have vanished; then it alone is left. The losses tell of the order."""
    folder, broken = place
    flags = "--batch 7 --epochs 4 --commit-every 1 --cache ram"
    alone = ranks.run([TRAINING, *arguments(folder, "alone", flags)], 1, "plain")
    assert alone.code == 0, alone.output
    with ElasticJob(folder, [ONE], flags) as job:
        job.until(lambda: job.steps >= 2)
        for path in broken:
            path.unlink()
        job.allow([ONE, OTHER])
        job.until(lambda: "2 ranks go on from step" in job.output)
        of_two = job.steps + 2
        job.until(lambda: job.steps >= of_two)
        job.kill_rank_on(ONE)
        job.finish()
    assert "1 ranks go on from step" in job.output
    assert images_of_epochs(job.run) == [IMAGES] * 4
    assert largest_loss_difference(job.run, folder / "alone") < 1e-3
    assert checkpoint(job.run)["data"]["train"].keys() == {"digest", "marks"}, (
        "the annotations are in no checkpoint"
    )


def test_ranks_lost_before_the_first_commit(place: tuple[Path, list[Path]]) -> None:
    folder, broken = place
    flags = f"--batch 2 --epochs 1 --commit-every 1000 --cache disk --stage {folder / 'stage'}"
    with ElasticJob(folder, [ONE, OTHER], flags) as job:
        job.until(lambda: job.steps >= 1)
        for path in broken:
            path.unlink()
        job.kill_rank_on(OTHER)
        job.finish()
    assert ranks.results(job.run)["world_size"] == 1, job.output
    assert images_of_epochs(job.run) == [IMAGES]


def test_data_that_is_gone_costs_no_commit(place: tuple[Path, list[Path]]) -> None:
    """Commits are in memory, and not yet a minute old, when all ranks end."""
    folder, _ = place
    with ElasticJob(folder, [ONE], "--batch 1 --epochs 1 --commit-every 1") as job:
        job.until(lambda: job.steps >= 3)
        shutil.rmtree(folder / "digits" / "images")
        assert job.wait() == 1, job.output  # horovodrun's code for any end that is not 0
    assert "is the data set still mounted and whole?" in job.output
    assert "exit with status code 2" in job.output
    assert checkpoint(job.run)["step"] == job.steps


HALF_SCANNED = """
import sys
from pathlib import Path
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.elastic import Kept
from horovod_yolo.distributed.backends import connect
from horovod_yolo.assembly.data import build_data, run_data
from horovod_yolo.assembly.elastic import elastic_run
from horovod_yolo.assembly.run import Run
comm, kept = connect(), Kept(1, print, print, print)
config = settings_of({"data": sys.argv[1], "cfg": "yolov5n"})
elastic = elastic_run(lambda: Run(config, Path(sys.argv[2]), None), kept, comm).elastic
spec = load_data_yaml(Path(config.data))
data = build_data(spec, config, comm)
if comm.rank == 1:
    elastic.known_data.keep(data)
kept.agree()
again = elastic_run(lambda: None, kept, comm).elastic.known_data
print("had it", again.data is not None, flush=True)
known = run_data(spec, config, again, comm)
print("images", len(known.train), len(known.val), known.train.digest == data.train.digest, flush=True)
comm.close()
"""


def test_a_world_that_changes_at_the_end_of_the_scan(digits: Path, tmp_path: Path) -> None:
    """Rank 0 saw the change, rank 1 had all it waited for: now none of them scans alone."""
    job = ranks.run(["-c", HALF_SCANNED, digits, tmp_path / "run"], 2)
    assert job.code == 0, job.output
    assert job.output.count("images 28 7 True") == 2, job.output
    assert job.output.count("had it True") == job.output.count("had it False") == 1, job.output
