"""Elastic jobs on hosts that fail: they go on with who is left, lose little and see every image once."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.elastic import FOR_GOOD, IMAGES, TRAIN, ElasticJob, LaunchedJob
from tests.cluster.hosts import Cluster
from tests.helpers import ranks
from tests.helpers.runs import checkpoint, sha256

COMMIT_EVERY = 3
EPOCHS = 12  # long enough for a host to come back
LONGER_THAN_GLOO = 35
TWO = {"host2": 1, "host3": 1}


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A host for the launcher and two for ranks, which may break."""
    with Cluster(3, tmp_path_factory.mktemp("h")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def flags(digits_64: Path) -> str:
    """Of a run that takes about half a minute where nothing happens to it."""
    return f"--data {digits_64} --img 64 --batch 16 --epochs {EPOCHS} --noval --commit-every {COMMIT_EVERY}"


def assert_all_well(job: ElasticJob, ranks: int, epochs: int = EPOCHS) -> None:
    """The job has ended well, on so many ranks, and each epoch took each image once."""
    assert job.finish() == 0, job.output
    assert job.results["world_size"] == ranks, job.output
    assert job.results["epochs"] == epochs
    assert job.images_of_epochs() == [IMAGES * 4 // 5] * epochs


def test_a_killed_worker_comes_back_and_for_a_black_hole_another_host_is_taken_in(
    hosts: Cluster, folder: Path, flags: str
) -> None:
    patience = ["--gloo-timeout-seconds", "300"]  # the ranks notice by themselves
    with ElasticJob(hosts, folder, TWO, (2, 1, 2), f"{flags} --epochs {100 * EPOCHS}", patience) as job:
        job.until_step(5)
        job.signal_rank(hosts["host3"], signal.SIGKILL)
        before = job.step
        job.until_world(1, since=0)
        assert 0 <= before - job.worlds[0][1] <= COMMIT_EVERY
        job.until_world(2, since=1)
        hosts["host3"].drop()
        before = job.step
        job.until_world(1, since=2, timeout=60)
        assert 0 <= before - job.worlds[2][1] <= COMMIT_EVERY
        hosts.add_host()
        job.slots["host4"] = 1
        job.write_hosts()
        job.until_world(2, since=3)
        job.until(lambda: not hosts["host3"].ranks(), 60)  # those of a host that is cut off end by themselves
        job.signal_rank(hosts["host2"], signal.SIGTERM)  # other tests see such a job to its end
        job.finish()
    assert "stopped on request after step" in job.output
    *whole, last = job.images_of_epochs()
    assert set(whole) <= {IMAGES * 4 // 5} and 0 < last <= IMAGES * 4 // 5
    assert checkpoint(job.run)["step"] == job.step


def test_a_stopped_worker_is_ended_by_its_guard(hosts: Cluster, folder: Path, flags: str) -> None:
    variables = {"HOROVOD_YOLO_HEARTBEAT_SECONDS": "6"}
    with ElasticJob(hosts, folder, TWO, (2, 1, 2), flags + " --epochs 3", FOR_GOOD, **variables) as job:
        job.until_step(5)
        job.signal_rank(hosts["host2"], signal.SIGSTOP)
        job.until(lambda: "it hangs or was stopped. It is ended" in job.output, 60)
        job.until_world(1, since=0)
        assert_all_well(job, ranks=1, epochs=3)
    assert " on host2 has not answered for " in job.output
    undisturbed = [*TRAIN.split(), *flags.split(), "--epochs", "3", "--slices", "2"]
    alone = ranks.run(["train.py", *undisturbed, "--project", folder, "--name", "alone"], 1, "plain")
    assert alone.code == 0, alone.output
    assert sha256(job.run) == sha256(folder / "alone"), "the other rank made the lost one's slices"


def test_too_few_ranks_end_with_a_checkpoint(hosts: Cluster, folder: Path, flags: str) -> None:
    with LaunchedJob(hosts, folder, TWO, (2, 2, 2), flags + " --elastic-wait 6") as job:
        job.until_step(5)
        job.slots.pop("host3")
        job.write_hosts()
        hosts["host3"].kill()
        assert job.finish(60) == 3, job.output
    assert_ended_in_vain(job)


def assert_ended_in_vain(job: ElasticJob) -> None:
    """The ranks that were left said so, and all that is in the table is in the checkpoint or after it."""
    assert "waited for enough ranks, in vain: checkpoint" in job.output
    assert "exit with status code 3." in job.output
    assert 3 <= checkpoint(job.run)["step"] <= job.step <= checkpoint(job.run)["step"] + COMMIT_EVERY


def test_a_host_struck_out_below_the_least_ends_with_a_checkpoint(
    hosts: Cluster, folder: Path, flags: str
) -> None:
    """Its ranks live on and wait with the others: horovod issue 3494."""
    with LaunchedJob(hosts, folder, TWO, (2, 2, 2), flags + " --elastic-wait 6") as job:
        job.until_step(5)
        job.strike("host3")
        assert job.finish(60) == 3, job.output
    assert_ended_in_vain(job)
    assert len(re.findall("in vain: checkpoint", job.output)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("cfg", ["yolov8n", "yolo11n", "yolo26n"])
def test_models_without_anchors_lose_a_worker(hosts: Cluster, folder: Path, flags: str, cfg: str) -> None:
    with ElasticJob(hosts, folder, TWO, (2, 1, 2), f"{flags} --cfg {cfg} --epochs 3", FOR_GOOD) as job:
        job.until_step(5)
        job.signal_rank(hosts["host3"], signal.SIGKILL)
        before = job.step
        job.until_world(1, since=0)
        assert 0 <= before - job.worlds[0][1] <= COMMIT_EVERY
        assert_all_well(job, ranks=1, epochs=3)


@pytest.mark.slow
def test_the_launchers_own_host_begins_alone(hosts: Cluster, folder: Path, flags: str) -> None:
    hosts["host2"].drop()
    with LaunchedJob(hosts, folder, {"host1": 1, "host2": 1}, (1, 1, 2), flags) as job:
        job.until_step(5)
        assert not hosts["host2"].ranks()
        hosts["host2"].undrop()
        job.until_world(2, since=0)
        assert_all_well(job, ranks=2)


@pytest.mark.slow
def test_a_host_struck_out_below_the_least_is_used_again(hosts: Cluster, folder: Path, flags: str) -> None:
    """Longer than Gloo's time-out later, by the ranks that are still there."""
    with LaunchedJob(hosts, folder, TWO, (2, 2, 2), flags + " --elastic-wait 120") as job:
        job.until_step(5)
        ranks = {job.a_rank(hosts[name]).pid for name in TWO}
        job.strike("host3")
        job.until(job.stands_still, 30)
        time.sleep(LONGER_THAN_GLOO)
        assert job.stands_still()
        job.slots["host3"] = 1
        job.write_hosts()
        job.until_world(2, since=0)
        assert {job.a_rank(hosts[name]).pid for name in TWO} == ranks
        assert_all_well(job, ranks=2)


@pytest.mark.slow
def test_a_host_struck_out_below_the_least_is_replaced(hosts: Cluster, folder: Path, flags: str) -> None:
    with LaunchedJob(hosts, folder, TWO, (2, 2, 2), flags + " --elastic-wait 120") as job:
        job.until_step(5)
        hosts.add_host().mount_tmpfs(folder / "tmp", "100m")
        job.strike("host3")
        job.until(job.stands_still, 30)
        job.slots["host4"] = 1
        job.write_hosts()
        job.until_world(2, since=0)
        assert not hosts["host3"].ranks(), "a rank that was replaced leaves"
        job.slots["host3"] = 1  # one more than --max-np
        job.write_hosts()
        assert_all_well(job, ranks=2)
