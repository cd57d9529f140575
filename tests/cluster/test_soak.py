"""Many steps on many ranks that are late at random: no deadlock, and memory stays flat."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pytest

from horovod_yolo.data.digits import make_digits
from tests.cluster import jobs
from tests.cluster.hosts import Cluster
from tests.helpers.ranks import results
from tests.helpers.runs import steps

BATCH = 16
HYP = f"nbs: {BATCH}\n"  # a step a batch
FLAGS = f"--cfg yolov5n --img 64 --batch {BATCH} --epochs 1000 --commit-every 25 --workers 0 --noplots"
LONGEST_STANDSTILL_S = 180.0
PAUSE_S, GAP_S = (0.05, 0.5), (0.0, 1.0)


@dataclass(frozen=True)
class Job:
    """A job and its ranks."""

    launcher: subprocess.Popen[str]
    ranks: list[psutil.Process]
    run: Path
    output: Path

    def steps_done(self) -> int:
        table = self.run / "steps.csv"
        return len(steps(self.run)) if table.exists() else 0


def start(cluster: Cluster, folder: Path, slots: int, count: int) -> Job:
    """Start a job and wait for its first step."""
    make_digits(folder / "digits", images=300, size=64, seed=1)
    (folder / "hyp.yaml").write_text(HYP)
    hosts = list(cluster)
    launch = (
        f"horovodrun --gloo --disable-cache --network-interfaces eth0 -np {slots * len(hosts)} "
        f"-H {','.join(f'{host.name}:{slots}' for host in hosts)} python train.py {FLAGS} --max-steps {count}"
    )
    where = ["--data", folder / "digits" / "data.yaml", "--hyp", folder / "hyp.yaml"]
    where += ["--project", folder, "--name", "run"]
    output = folder / "output"
    launcher = hosts[0].start([*launch.split(), *where], env=jobs.environment(), log=output)
    job = Job(launcher, [], folder / "run", output)
    wait_for_step(job, 1)
    job.ranks.extend(rank for host in hosts for rank in host.ranks())
    assert len(job.ranks) == slots * len(hosts)
    return job


def wait_for_step(job: Job, number: int) -> None:
    deadline = time.monotonic() + LONGEST_STANDSTILL_S
    while job.steps_done() < number:
        assert job.launcher.poll() is None, job.output.read_text()
        assert time.monotonic() < deadline, f"no step came:\n{job.output.read_text()}"
        time.sleep(0.2)


def delay_until_the_end(job: Job, seed: int) -> list[list[int]]:
    """Stop a random rank for a moment, again and again; the ranks' resident bytes after each."""
    rng = np.random.default_rng(seed)
    samples, done, moved = [], 0, time.monotonic()
    while job.launcher.poll() is None:
        try:
            victim = job.ranks[rng.integers(len(job.ranks))]
            victim.suspend()
            time.sleep(rng.uniform(*PAUSE_S))
            victim.resume()
            samples.append([rank.memory_info().rss for rank in job.ranks])
        except psutil.NoSuchProcess:
            job.launcher.wait(timeout=60)
            break
        time.sleep(rng.uniform(*GAP_S))
        if job.steps_done() > done:
            done, moved = job.steps_done(), time.monotonic()
        assert time.monotonic() - moved < LONGEST_STANDSTILL_S, f"stuck after step {done}"
    return samples


def growth(samples: list[list[int]]) -> list[float]:
    """Each rank's median memory in the last quarter of the samples over that in the second."""
    quarter = len(samples) // 4
    by_rank = list(zip(*samples, strict=True))
    return [median(rss[-quarter:]) / median(rss[quarter : 2 * quarter]) for rss in by_rank]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hosts", "slots", "count"),
    [
        pytest.param(2, 2, 100, marks=pytest.mark.timeout(900), id="4-ranks-100-steps"),
        pytest.param(4, 4, 1000, marks=pytest.mark.timeout(7200), id="16-ranks-1000-steps"),
    ],
)
def test_late_ranks(folder: Path, hosts: int, slots: int, count: int) -> None:
    with Cluster(hosts, folder / "hosts") as cluster:
        job = start(cluster, folder, slots, count)
        samples = delay_until_the_end(job, seed=0)
        assert job.launcher.returncode == 0, job.output.read_text()
        assert not any(host.processes() for host in cluster)
    assert [row["step"] for row in steps(job.run)] == list(range(1, count + 1))
    assert results(job.run)["world_size"] == hosts * slots
    assert len(samples) >= 20
    grown = growth(samples)
    sizes = [round(median(rss) / 2**20) for rss in zip(*samples, strict=True)]
    print(f"{len(samples)} delays; MiB a rank: {sizes}; growth: {[round(g, 4) for g in grown]}")
    assert max(grown) < 1.05
