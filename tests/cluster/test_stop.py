"""SIGTERM to ``horovod-yolo launch`` on a host without ranks: those of the others stop with a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.elastic import LaunchedJob, StaticJob
from tests.cluster.hosts import Cluster
from tests.helpers.runs import checkpoint

FLAGS = "--img 64 --batch 8 --epochs 500 --noval --commit-every 1000"
TWO = {"host2": 1, "host3": 1}
SECONDS = 15  # a step, a checkpoint, and the end of horovodrun


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A host for the launcher and two for ranks, each of which holds a file of its own at one path."""
    with Cluster(3, tmp_path_factory.mktemp("h")) as cluster:
        yield cluster


def stop(job: LaunchedJob) -> None:
    """Ask, and see that the ranks leave with a checkpoint and nothing else is left."""
    job.ask_to_stop()
    assert job.finish(SECONDS) == 3, job.output
    for host in job.cluster:
        assert not job.stop_folders(host), f"left on {host.name}"
        assert not host.processes()


def assert_stopped_after_a_step(job: LaunchedJob, least: int) -> None:
    """All ranks finished the step in hand."""
    assert f"checkpoint {job.run}/weights/last.pt; go on with" in job.output
    assert checkpoint(job.run)["step"] == job.step >= least


@pytest.mark.parametrize("launch", ["--gloo", "--torch --max-restarts 3"])
def test_static(hosts: Cluster, folder: Path, digits: Path, launch: str) -> None:
    """Over torch ranks that stopped are not started anew, or not for long."""
    with StaticJob(hosts, folder, TWO, (2, 2, 2), f"--data {digits} {FLAGS}", launch.split()) as job:
        job.until_step(2)
        stop(job)
        assert_stopped_after_a_step(job, 2)


@pytest.mark.slow
def test_elastic_where_no_host_of_the_start_has_ranks(hosts: Cluster, folder: Path, digits: Path) -> None:
    train = f"--data {digits} {FLAGS.replace('1000', '2')}"
    with LaunchedJob(hosts, folder, {"host2": 1}, (1, 1, 2), train) as job:
        job.until_step(2)
        job.slots["host3"] = 1
        job.write_hosts()
        job.until_world(2, since=0)
        job.strike("host2")
        job.until_world(1, since=1)
        job.until(lambda: not hosts["host2"].ranks(), 10)
        before = job.step
        stop(job)
        assert_stopped_after_a_step(job, before)


@pytest.mark.slow
def test_elastic_while_too_few_ranks_wait(hosts: Cluster, folder: Path, digits: Path) -> None:
    """One of them on a host that was struck out: nobody else could tell it."""
    train = f"--data {digits} {FLAGS.replace('1000', '2')} --elastic-wait 300"
    with LaunchedJob(hosts, folder, TWO, (2, 2, 2), train) as job:
        job.until_step(2)
        job.strike("host3")
        job.until(job.stands_still, 30)
        stop(job)
        assert len(re.findall("stopped on request while it waited for ranks", job.output)) == 2
        assert checkpoint(job.run)["step"] <= job.step <= checkpoint(job.run)["step"] + 2
