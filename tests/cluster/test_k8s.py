"""The job of launch/k8s on hosts that are made to look like the MPI Operator's pods."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.cluster.etc import USER, USER_ID
from tests.cluster.hosts import Cluster, Host

REPO = Path(__file__).resolve().parents[2]
SSHD = REPO / "docker/sshd.sh"
JOB = yaml.safe_load((REPO / "launch/k8s/mpijob.yaml").read_text(encoding="utf-8"))
NAME = JOB["metadata"]["name"]
SHARED = "/mnt"
# Not torch: what is tested is the way to the ranks.
PROBE = """
import os, socket
from mpi4py import MPI
found = MPI.COMM_WORLD.gather((socket.gethostname(), os.getuid(), os.environ["OMP_NUM_THREADS"]))
if MPI.COMM_WORLD.rank == 0:
    print("FOUND", found)
"""


def make_secret(folder: Path) -> Path:
    """The job's key as the operator mounts it: root's files, which all may read."""
    folder.mkdir()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-m", "PEM", "-N", "", "-f", folder / "id_rsa"],
        check=True,
    )
    (folder / "authorized_keys").write_bytes((folder / "id_rsa.pub").read_bytes())
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def dress(host: Host, name: str, folder: Path, secret: Path, addresses: str) -> None:
    """Name, name service, ssh settings of the image and the key of the job."""
    own = folder / host.name
    with (own / "hosts").open("a") as hosts:
        hosts.write(addresses)
    (own / "ssh/ssh_config").write_text((REPO / "docker/ssh_config").read_text(encoding="utf-8"))
    host.run(["hostname", name])
    host.run(["mkdir", f"/home/{USER}/.ssh"])
    host.bind(secret, f"/home/{USER}/.ssh")
    host.bind(folder.parent, SHARED)  # above it pytest lets root in only


def test_the_job_starts_its_ranks_as_pods_would(folder: Path) -> None:
    (folder / "probe.py").write_text(PROBE)
    container = JOB["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]
    running = []
    with Cluster(3, folder / "hosts") as cluster:
        launcher, *workers = cluster
        names = [f"{NAME}-worker-{i}" for i in range(len(workers))]
        pods = [f"{name}.{NAME}.default.svc" for name in names]
        addresses = "".join(f"{w.address} {pod}\n" for w, pod in zip(workers, pods, strict=True))
        addresses += f"{launcher.address} {NAME}-launcher\n"
        secret = make_secret(folder / "secret")
        environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPO)}
        own = {**environment, "TMPDIR": f"/home/{USER}"}  # all hosts share /tmp
        dress(launcher, f"{NAME}-launcher", folder / "hosts", secret, addresses)
        for worker, name in zip(workers, names, strict=True):
            dress(worker, name, folder / "hosts", secret, addresses)
            running.append(worker.start([SSHD], user=USER, env=own, log=folder / f"{name}.log", cwd="/"))
        (folder / "hostfile").write_text("".join(f"{pod} slots=2\n" for pod in pods))
        wait_for_workers(launcher, folder, environment, pods)
        of_operator = {
            "OMPI_MCA_orte_keep_fqdn_hostnames": "true",
            "OMPI_MCA_orte_default_hostfile": f"{SHARED}/hostfile",
            "OMPI_MCA_plm_rsh_args": "-o ConnectionAttempts=10",
            "OMPI_MCA_orte_set_default_slots": "2",
            "NVIDIA_VISIBLE_DEVICES": "",
            "NVIDIA_DRIVER_CAPABILITIES": "",
        }
        words = [word.replace("/etc/mpi", SHARED) for word in container["command"]]
        done = launcher.run(
            [sys.executable, "-m", "horovod_yolo.cli", *words[1:], f"{SHARED}/probe.py"],
            user=USER,
            env={**environment, **of_operator, **{v["name"]: v["value"] for v in container["env"]}},
            cwd=SHARED,
        )
    for sshd in running:
        sshd.wait(timeout=20)  # gone with its host
    expected = [(name, USER_ID, "4") for name in names for _ in range(2)]
    assert done.returncode == 0 and f"FOUND {expected}" in done.stdout, done.stdout


def wait_for_workers(launcher: Host, folder: Path, environment: dict[str, str], pods: list[str]) -> None:
    """The readiness probe: both answer on the port of the image's sshd."""
    deadline, found = time.monotonic() + 20, ""
    while time.monotonic() < deadline and len(found.split()) < len(pods):
        found = launcher.run(
            [REPO / "launch/discover_hosts.sh"],
            env={**environment, "HOSTFILE": str(folder / "hostfile"), "SSH_PORT": "2222"},
        ).stdout
    logs = "".join(log.read_text() for log in folder.glob("*.log"))
    assert found.split() == [f"{pod}:2" for pod in pods], logs
