"""Launching where nobody prepared anything: odd paths, no root, misleading names, dead cards, few ports."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cluster import jobs
from tests.cluster.etc import USER, USER_ID
from tests.cluster.hosts import Cluster
from tests.helpers.ranks import REPOSITORY, results
from tests.helpers.runs import steps

FLAGS = "--cfg yolov5n --img 64 --batch 4 --epochs 1 --max-steps 2 --noval --noplots --workers 0 --name run"
TWO = ["--hosts", "host1:1,host2:1"]


def check(project: Path) -> None:
    """The job ran over two ranks to its last step."""
    assert results(project / "run")["world_size"] == 2
    assert len(steps(project / "run")) == 2


@pytest.mark.parametrize("how", ["--gloo", pytest.param("--mpirun", marks=pytest.mark.slow)])
def test_a_user_without_root_and_paths_with_spaces(
    how: str, folder: Path, digits: Path, four_hosts: Cluster
) -> None:
    mine = folder / "mine"
    here = mine / "my own checkout; $HOME"
    shutil.copytree(REPOSITORY / "horovod_yolo", here / "horovod_yolo")
    shutil.copytree(REPOSITORY / "launch", here / "launch")
    shutil.copytree(digits.parent, here / "some data")
    (mine / "cache").mkdir()
    for path in (mine, *mine.rglob("*")):
        shutil.chown(path, USER_ID, USER_ID)
    data = ["--data", "some data/data.yaml", "--project", "all 'my' runs"]
    command = ["launch/horovodrun.sh", how, *TWO, "--", "train", *data, *FLAGS.split()]
    variables = {"PYTHONPATH": str(here), "XDG_CACHE_HOME": str(mine / "cache")}
    job = jobs.run(four_hosts["host1"], command, user=USER, cwd=here, **variables)
    assert job.code == 0, job.output
    check(here / "all 'my' runs")
    assert (here / "all 'my' runs" / "run" / "results.json").stat().st_uid == USER_ID


@pytest.mark.parametrize("how", ["--gloo", pytest.param("--mpi", marks=pytest.mark.slow)])
def test_misleading_names_dead_cards_and_few_ports(how: str, folder: Path, digits: Path) -> None:
    """All at once, as each is met.

    Debian's installer writes the host's own name as 127.0.1.1. Docker makes a card that is up, with the same
    address on every host. Two of three of the ports that a host may give to a program are taken.
    """
    with Cluster(2, folder / "hosts", own_address="127.0.1.1") as cluster:
        for host in cluster:
            host.add_dead_interface("docker0", "172.17.0.1/16")
            host.run(["sh", "-c", "echo 40000 40299 > /proc/sys/net/ipv4/ip_local_port_range"])
            take = "held = [socket.create_server(('', 40000 + port)) for port in range(300) if port % 3]"
            host.start(["python3", "-c", f"import socket, time; {take}; time.sleep(600)"])
        words = ["--data", digits, "--project", folder, *FLAGS.split()]
        job = jobs.run(cluster["host1"], ["horovod-yolo", "launch", how, *TWO, "--", "train", *words])
        assert job.code == 0, job.output
        check(folder)


def test_data_that_one_host_lacks(folder: Path, digits: Path) -> None:
    """Only one rank meets the mistake; all of them end with it, at once."""
    with Cluster(2, folder / "hosts") as cluster:
        disk = folder / "disk"
        disk.mkdir()
        cluster["host1"].bind(digits.parent, disk)
        words = ["--data", disk / "data.yaml", "--project", folder, *FLAGS.split()]
        job = jobs.run(cluster["host1"], ["horovod-yolo", "launch", *TWO, "--", "train", *words], timeout=60)
        assert f"{disk}/data.yaml" in job.output
        assert "(on rank 1 of 2)" in job.output
        assert job.code != 0
