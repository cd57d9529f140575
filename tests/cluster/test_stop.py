"""SIGTERM to ``horovod-yolo launch`` on a host without ranks: those of the others stop with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.elastic import LaunchedJob, StaticJob
from tests.cluster.hosts import Cluster
from tests.helpers.runs import checkpoint

FLAGS = "--img 64 --batch 8 --epochs 500 --noval --commit-every 1000"
SECONDS = 15  # a step, a checkpoint, and the end of horovodrun


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A host for the launcher and two for ranks, each of which holds a file of its own at one path."""
    with Cluster(3, tmp_path_factory.mktemp("h")) as cluster:
        yield cluster


def stop(job: LaunchedJob) -> None:
    """Ask, and see that all ends as it should."""
    before = job.step
    job.ask_to_stop()
    assert job.finish(SECONDS) == 3, job.output
    assert f"checkpoint {job.run}/weights/last.pt; go on with" in job.output
    assert checkpoint(job.run)["step"] == job.step >= before
    for host in job.cluster:
        assert not job.stop_folders(host), f"left on {host.name}"
        assert not host.processes()


def test_static(hosts: Cluster, folder: Path, digits: Path) -> None:
    with StaticJob(hosts, folder, {"host2": 1, "host3": 1}, (2, 2, 2), f"--data {digits} {FLAGS}") as job:
        job.until_step(2)
        stop(job)


def test_elastic_where_no_host_of_the_start_has_ranks(hosts: Cluster, folder: Path, digits: Path) -> None:
    train = f"--data {digits} {FLAGS.replace('1000', '2')}"
    with LaunchedJob(hosts, folder, {"host2": 1}, (1, 1, 2), train) as job:
        job.until_step(2)
        job.slots["host3"] = 1
        job.write_hosts()
        job.until_world(2, since=0)
        del job.slots["host2"]
        job.write_hosts()
        job.until_world(1, since=1)
        job.until(lambda: not hosts["host2"].ranks(), 10)
        stop(job)
