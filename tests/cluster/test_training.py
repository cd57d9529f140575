"""Training over four hosts equals training in one process."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import jobs
from tests.cluster.hosts import Cluster
from tests.helpers.ranks import REPOSITORY, results
from tests.helpers.runs import largest_loss_difference, steps, weight_difference

STEPS = 3
# Rates that do not amplify rounding, as in tests/parallel/test_world_size.py. Batches of 20 and 8 images: 5
# ranks have unlike slices, and of 16 some have two images, one or none.
FLAGS = (
    f"--cfg yolov5n --img 64 --batch 20 --epochs 9 --max-steps {STEPS} --noval --noplots --workers 0 "
    "--sync-bn --compression none"
)
HYP = "lr0: 0.0005\nwarmup_bias_lr: 0.0\n"


@pytest.fixture(scope="module")
def place(
    digits: Path, four_hosts: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """(a folder all hosts see, a data.yaml that each host mounts for itself)."""
    folder = tmp_path_factory.mktemp("four")
    (folder / "hyp.yaml").write_text(HYP)
    mounted = folder / "data"
    mounted.mkdir()
    for host in four_hosts:
        own = folder / f"disk-{host.name}"
        shutil.copytree(digits.parent, own)  # with other times: copies are not one file system
        host.bind(own, mounted)
    yield folder, mounted / "data.yaml"
    for host in four_hosts:
        host.unmount(mounted)


@pytest.fixture(scope="module")
def alone(place: tuple[Path, Path], four_hosts: Cluster) -> Path:
    """The run of one process, which has read its data on one host."""
    return train(four_hosts, place, "python", 1)


def train(hosts: Cluster, place: tuple[Path, Path], launch: str, ranks: int) -> Path:
    folder, data = place
    name = f"run-{len(list(folder.glob('run-*')))}"
    script = [] if launch.endswith(" train") else ["train.py"]
    where = ["--data", data, "--hyp", folder / "hyp.yaml", "--project", folder, "--name", name]
    job = jobs.run(hosts["host1"], [*shlex.split(launch), *script, *where, *FLAGS.split()], timeout=400)
    assert job.code == 0, job.output
    assert results(folder / name)["world_size"] == ranks
    assert len(steps(folder / name)) == STEPS
    return folder / name


def check(run: Path, alone: Path, hosts: Cluster) -> None:
    assert largest_loss_difference(run, alone) < 1e-4
    assert weight_difference(run, alone) < 1e-3
    assert not any(host.processes() for host in hosts)


@pytest.mark.parametrize("slots", [(1, 2, 1, 1), pytest.param((4, 4, 4, 4), marks=pytest.mark.slow)])
def test_horovodrun_over_gloo(
    slots: tuple[int, ...], alone: Path, place: tuple[Path, Path], four_hosts: Cluster
) -> None:
    hosts = ",".join(f"{host.name}:{count}" for host, count in zip(four_hosts, slots, strict=True))
    ranks = sum(slots)
    run = train(four_hosts, place, f"horovodrun --gloo -np {ranks} -H {hosts} python", ranks)
    check(run, alone, four_hosts)


# Open MPI's ranks never sleep while they wait: 16 of them on two cores take minutes and leave no core to
# others.
@pytest.mark.parametrize("slots", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_horovodrun_over_mpi(slots: int, alone: Path, place: tuple[Path, Path], four_hosts: Cluster) -> None:
    hosts = ",".join(f"{host.name}:{slots}" for host in four_hosts)
    run = train(four_hosts, place, f"horovod-yolo launch --mpi --hosts {hosts} -- train", 4 * slots)
    check(run, alone, four_hosts)


@pytest.mark.parametrize("slots", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_mpirun_with_a_hostfile(
    slots: int, alone: Path, place: tuple[Path, Path], four_hosts: Cluster
) -> None:
    hostfile = place[0] / "hostfile"
    example = (REPOSITORY / "hostfiles" / "four_nodes.example").read_text()
    hostfile.write_text(example.replace("slots=4", f"slots={slots}"))
    run = train(four_hosts, place, f"launch/mpirun.sh --hostfile {hostfile} -- train", 4 * slots)
    check(run, alone, four_hosts)


@pytest.mark.parametrize(("count", "slots"), [(2, 1), pytest.param(4, 4, marks=pytest.mark.slow)])
def test_torchrun(count: int, slots: int, alone: Path, place: tuple[Path, Path], four_hosts: Cluster) -> None:
    """An agent a host. The names of hosts lead to loopback on themselves, as on Debian."""
    hosts = list(four_hosts)[:count]
    meeting = f"--rdzv-backend c10d --rdzv-endpoint {hosts[0].address}:29400 --rdzv-id {place[0].name}"
    launch = f"torchrun --nnodes {count} --nproc-per-node {slots} {meeting} --no-python python"
    folder, data = place
    where = ["--data", data, "--hyp", folder / "hyp.yaml", "--project", folder, "--name", f"torch{slots}"]
    command = [*shlex.split(launch), "train.py", *map(str, where), *FLAGS.split()]
    others = [
        host.start(command, env=jobs.environment(), log=folder / f"{host.name}.log", cwd=REPOSITORY)
        for host in hosts[1:]
    ]
    job = jobs.run(hosts[0], command, timeout=400)
    assert job.code == 0, job.output
    assert [other.wait(60) for other in others] == [0] * (count - 1)
    assert results(folder / f"torch{slots}")["world_size"] == count * slots
    check(folder / f"torch{slots}", alone, four_hosts)
