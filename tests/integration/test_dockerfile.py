"""The CPU image, built and used without Docker: its steps run for real in a bootstrapped Debian.

What docker/README.md says to type is what is run here, with fewer images, epochs and ranks. This needs root,
namespaces, debootstrap and the network. The first run takes about ten minutes; later ones find Debian, pip's
downloads and Horovod's wheel in ``~/.cache/horovod_yolo``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import hosts
from tests.helpers import debian_root, ranks
from tests.helpers.debian_root import Entry
from tests.helpers.docker_run import SOMEONE, docker_run, documented, trainer
from tests.helpers.image_build import Builder, Stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SHORT = "--epochs 1 --batch-size 8 --img 64 --workers 0 --noplots"
SSHD = "/opt/horovod_yolo/docker/sshd.sh"


def torch_index() -> dict[str, str]:
    """Without PyTorch's own index, pip's settings must know where a CPU build of torch is."""
    try:
        socket.getaddrinfo("download.pytorch.org", 443)
    except OSError:
        return {"TORCH_INDEX": "https://pypi.org/simple"}
    return {}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """horovod-yolo:cpu."""
    reason = debian_root.why_not()
    if reason is not None:
        pytest.skip(f"LOUD SKIP: {reason}; docker/Dockerfile.cpu is not executed")
    pytest.importorskip("dockerfile", reason="LOUD SKIP: no parser of Dockerfiles for this platform")
    work = tmp_path_factory.mktemp("image")
    try:
        builder = Builder(
            ranks.REPOSITORY, work, {"debian:bookworm-slim": debian_root.bootstrap}, torch_index()
        )
        yield builder.build(ranks.REPOSITORY / "docker/Dockerfile.cpu")
    finally:
        assert (
            str(work) not in Path("/proc/self/mountinfo").read_text()
        )  # or removing it would reach this machine
        shutil.rmtree(work)


@pytest.fixture
def here(image: Stage, tmp_path: Path) -> Path:
    """A folder to type `docker run` in, with a small data set and a key pair, all of it the trainer's."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "datasets").mkdir()
    keys = [
        line.removeprefix("sudo ")
        for line in documented("Two nodes")
        if "keys" in line and "docker" not in line
    ]
    assert len(keys) == 4
    subprocess.run(["bash", "-euc", "\n".join(keys)], cwd=tmp_path, check=True)
    for folder in (tmp_path / "runs", tmp_path / "datasets"):
        os.chown(folder, *trainer(image))
    (data,) = (line for line in documented("One node") if "data digits" in line)
    assert finish(*docker_run(f"{data} --images 16 --size 64", image, tmp_path))
    return tmp_path


def finish(entry: Entry, command: list[str], timeout: float = 300) -> str:
    """Run a command in a container; what it printed. It must succeed."""
    done = entry.run(command, timeout)
    assert done.returncode == 0, done.stdout
    return done.stdout


def bash(image: Stage, here: Path, script: str, options: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script in a container with no network but its own ``lo``."""
    entry, command = docker_run(f"docker run {options} horovod-yolo:cpu bash -c", image, here)
    return entry.run([*command, script], 120)


def test_the_layout(image: Stage, tmp_path: Path) -> None:
    shown = finish(*docker_run("docker run horovod-yolo:cpu horovodrun --check-build", image, tmp_path))
    for part in ("PyTorch", "MPI", "Gloo"):
        assert f"[X] {part}" in shown, shown
    where = "import horovod_yolo, s3fs, gcsfs, aiohttp, tensorboard; print(horovod_yolo.__file__)"
    script = f"id -un; pwd; command -v python horovod-yolo; python -c '{where}'"
    assert bash(image, tmp_path, script).stdout.split() == [
        *("trainer", "/workspace", "/opt/venv/bin/python", "/opt/venv/bin/horovod-yolo"),
        "/opt/horovod_yolo/horovod_yolo/__init__.py",
    ]
    assert "launch" in finish(*docker_run("docker run horovod-yolo:cpu", image, tmp_path))


def test_nothing_secret_or_needless_is_in_the_image(image: Stage) -> None:
    assert list((image.root / "etc/ssh").glob("sshd_config*")) and not list(
        (image.root / "etc/ssh").glob("*key*")
    )
    assert not list((image.root / "home/trainer").glob(".ssh/*"))
    code = {path.name for path in (image.root / "opt/horovod_yolo").iterdir()}
    assert {"horovod_yolo", "launch", "train.py"} <= code
    assert not code & {".git", ".venv", "tests", "runs", "datasets"}
    assert not (image.root / "usr/bin/g++").exists()


@pytest.mark.parametrize("section", ["One node", "As another user"])
def test_two_ranks_on_one_node(image: Stage, here: Path, section: str) -> None:
    (job,) = (line for line in documented(section) if "horovod-yolo:cpu horovod-yolo launch" in line)
    if section == "As another user":
        os.chown(here / "runs", *SOMEONE)
    finish(*docker_run(f"{job} {SHORT}", image, here), timeout=600)
    assert ranks.results(here / "runs/train/exp")["world_size"] == 2
    owner = trainer(image) if section == "One node" else SOMEONE
    assert (here / "runs/train/exp/results.json").stat().st_uid == owner[0]


def test_sshd_without_root(image: Stage, here: Path) -> None:
    script = f"""
        {SSHD} 2>/tmp/sshd.log &
        for _ in $(seq 100); do ssh localhost true 2>&1 && break; sleep 0.1; done >/dev/null
        ssh -p 2222 localhost true && ssh localhost 'whoami; command -v python orted'
        ssh-keygen -q -t ed25519 -N '' -f /tmp/other
        ssh -o IdentitiesOnly=yes -i /tmp/other localhost true
    """
    done = bash(image, here, script, '-v "$PWD/keys":/home/trainer/.ssh:ro')
    assert done.stdout.split()[:3] == ["trainer", "/opt/venv/bin/python", "/usr/bin/orted"], done.stdout
    assert (
        done.returncode == 255 and "Permission denied (publickey)" in done.stdout
    )  # a key that no one let in


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "no readable /home/trainer/.ssh/authorized_keys"),
        ('--user "$(id -u):$(id -g)"', f"--build-arg UID={SOMEONE[0]}"),
        ("-e SSHD_PORT=http", "SSHD_PORT is 'http'"),
    ],
)
def test_sshd_says_what_is_missing(image: Stage, tmp_path: Path, options: str, words: str) -> None:
    done = bash(image, tmp_path, SSHD, options)
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 1 and words in done.stdout, done.stdout


@pytest.mark.parametrize("how", ["--gloo", "--mpi", "--mpirun"])
def test_two_nodes(image: Stage, here: Path, tmp_path_factory: pytest.TempPathFactory, how: str) -> None:
    """Containers in the networks of two hosts, as ``--network host`` has them."""
    reason = hosts.why_not()
    if reason is not None:
        pytest.skip(f"LOUD SKIP: {reason}; containers on two hosts are not tested")
    worker, job = (line for line in documented("Two nodes") if line.startswith("docker run"))
    assert "--hosts host1:4,host2:4 --" in job
    job = job.replace("--hosts host1:4,host2:4 --", f"--hosts host1:1,host2:1 {how} --")
    with hosts.Cluster(2, tmp_path_factory.mktemp("h")) as cluster:
        entry, command = docker_run(worker, image, here)
        log = here / "sshd.log"
        sshd = cluster["host2"].start(entry.argv(command), log=log)
        deadline = time.monotonic() + 20
        while "listening on" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        entry, command = docker_run(f"{job} {SHORT}", image, here)
        done = cluster["host1"].run(entry.argv(command), timeout=400)
        assert done.returncode == 0, done.stdout + log.read_text()
        assert "Accepted publickey for trainer" in log.read_text()
    assert sshd.wait(timeout=10) != 0  # the host's end was its end
    assert ranks.results(here / "runs/train/exp")["world_size"] == 2
