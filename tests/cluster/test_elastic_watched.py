"""Elastic jobs that lose rank 0, whose page and loggers another rank goes on with, on another host."""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.elastic import FOR_GOOD, ElasticJob
from tests.cluster.hosts import Cluster, Host
from tests.cluster.jobs import environment
from tests.helpers.ranks import BIN, REPOSITORY
from tests.helpers.runs import steps

THREE = {"host2": 1, "host3": 1, "host4": 1}
PAGE = re.compile(r"dashboard: (http://\S+)")
READ = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
HISTORY = """
import json
from mlflow import MlflowClient
client = MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("horovod_yolo").experiment_id])
assert run.info.status == "FINISHED", run.info
print(json.dumps([int(point.value) for point in client.get_metric_history(run.info.run_id, "step")]))
"""


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A host for the launcher and who looks, and three for ranks, which may break."""
    with Cluster(4, tmp_path_factory.mktemp("h")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def flags(digits_64: Path) -> str:
    return f"--data {digits_64} --img 64 --batch 12 --noval --commit-every 3"


def asked(host: Host, address: str) -> dict[str, Any] | None:
    """What the page at an address has to tell somebody on a host; None where nobody answers."""
    done = host.run([BIN / "python", "-c", READ, f"{address}api/now"])
    if done.returncode:
        assert "URLError" in done.stdout or "ConnectionReset" in done.stdout, done.stdout
        return None
    now: dict[str, Any] = json.loads(done.stdout)
    return now


@contextmanager
def mlflow_server(host: Host, folder: Path) -> Iterator[str]:
    """MLflow's own server on a host, for all others; its address."""
    folder.mkdir()
    words = [BIN / "python", "-m", "tests.helpers.mlflow_server", folder, "5000", "0.0.0.0"]
    address = f"http://{host.name}:5000"
    variables = environment(MLFLOW_SERVER_ALLOWED_HOSTS=f"{host.name}:5000")
    process = host.start(words, env=variables, log=folder / "log", cwd=REPOSITORY)
    deadline = time.monotonic() + 120
    while host.run([BIN / "python", "-c", READ, f"{address}/version"]).returncode:
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
    yield address
    process.kill()
    process.wait()


def steps_there(host: Host, address: str) -> list[int]:
    """The values of the metric ``step`` of the only run that a server of MLflow's has, asked on a host."""
    done = host.run([BIN / "python", "-c", HISTORY], env=environment(MLFLOW_TRACKING_URI=address))
    assert done.returncode == 0, done.stdout
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_each_step_once(run: Path) -> None:
    """In the table and in the files of events, over all of them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    seen: Counter[int] = Counter()
    for file in run.glob("events.out.tfevents.*"):
        for event in EventFileLoader(str(file)).Load():
            seen[event.step] += sum(value.tag == "step/lr" for value in event.summary.value)
    del seen[0]
    made = [int(row["step"]) for row in steps(run)]
    assert made == list(range(1, len(made) + 1))
    assert seen == Counter(made), "TensorBoard has a step twice or not at all"


def watched(job: ElasticJob, number: int, host: Host) -> list[str]:
    """The hosts of the job's world of this number, from 1, once its page has seen a step of them all."""
    job.until(lambda: len(PAGE.findall(job.output)) >= number, 60)
    address = PAGE.findall(job.output)[number - 1]
    now: dict[str, Any] = {}

    def has_a_step() -> bool:
        now.update(asked(host, address) or {})
        return bool(now and now["ranks"])

    job.until(has_a_step, 60)
    hosts: list[str] = now["facts"]["hosts"]
    assert [rank["host"] for rank in now["ranks"]] == hosts and address == f"http://{hosts[0]}:8090/"
    return hosts


def test_the_page_and_the_logger_go_on_where_rank_0_is(hosts: Cluster, folder: Path, flags: str) -> None:
    more = f"{flags} --epochs 100 --dashboard 0.0.0.0:8090 --log-to tensorboard"
    with ElasticJob(hosts, folder, THREE, (3, 1, 3), more, FOR_GOOD) as job:
        first, *others = watched(job, 1, hosts["host1"])
        job.until_step(5)
        hosts[first].kill()
        second, third = watched(job, 2, hosts["host1"])
        assert {second, third} == set(others)
        job.signal_rank(hosts[second], signal.SIGKILL)  # the host stays
        assert watched(job, 3, hosts["host1"]) == [third]
        job.signal_rank(hosts[third], signal.SIGTERM)
        job.finish()
    assert "stopped on request after step" in job.output
    assert [size for size, _ in job.worlds] == [2, 1] and len(PAGE.findall(job.output)) == 3
    assert_each_step_once(job.run)
    files = sorted(job.run.glob("events.out.tfevents.*"))
    assert [path.name.rpartition(".")[2] for path in files] == [first, second, third]


@pytest.mark.slow  # MLflow's server takes long to start
def test_mlflow_has_each_step_once_where_the_host_of_rank_0_is_lost(
    hosts: Cluster, folder: Path, flags: str
) -> None:
    with mlflow_server(hosts["host1"], folder / "server") as address:
        how = {"MLFLOW_TRACKING_URI": address}
        more = f"{flags} --epochs 4 --log-to mlflow tensorboard"
        with ElasticJob(hosts, folder, THREE, (3, 1, 3), more, FOR_GOOD, **how) as job:
            job.until_step(5)
            hosts[job.host_of_rank_0()].power_off()
            job.until_world(2, since=0)
            assert job.finish() == 0, job.output
        assert_each_step_once(job.run)
        made = [int(row["step"]) for row in steps(job.run)]
        assert steps_there(hosts["host1"], address) == made, job.output
        assert "mlflow: " not in job.output
