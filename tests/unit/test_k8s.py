"""The Kubernetes job and its overlay for CPUs: what the API accepts, and that they start what we ship."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from horovod_yolo.config.load import config_from_flags, train_parser
from tests.helpers.mpijob import REFUSED, Json, check, check_against_crd, strict

REPO = Path(__file__).resolve().parents[2]
K8S = REPO / "launch/k8s"


def gpu_job() -> Json:
    loaded: Json = yaml.safe_load((K8S / "mpijob.yaml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def cpu_job() -> Json:
    """What `kubectl apply -k launch/k8s` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("LOUD SKIP: no kubectl, so the overlay for CPUs is not built")
    known = subprocess.run(
        [kubectl, "version", "--client", "--output=json"], capture_output=True, text=True, timeout=60
    )
    if "kustomizeVersion" not in known.stdout:
        pytest.skip("LOUD SKIP: this kubectl is older than 1.24, and its kustomize knows no `patches`")
    built = subprocess.run([kubectl, "kustomize", str(K8S)], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0 and not built.stderr, built.stderr
    loaded: Json = yaml.safe_load(built.stdout)
    return loaded


@pytest.fixture(params=["gpu", "cpu"])
def job(request: pytest.FixtureRequest) -> Json:
    return gpu_job() if request.param == "gpu" else copy.deepcopy(request.getfixturevalue("cpu_job"))


def pod(job: Json, role: str) -> Json:
    spec: Json = job["spec"]["mpiReplicaSpecs"][role]["template"]["spec"]
    return spec


def container(job: Json, role: str) -> Json:
    (only,) = pod(job, role)["containers"]
    return dict(only)


def objects(node: Any) -> Iterator[Json]:
    """Every mapping within ``node``, whatever its depth."""
    children: list[Any] = list(node.values()) if isinstance(node, dict) else node
    if isinstance(node, dict):
        yield node
    for child in children:
        if isinstance(child, dict | list):
            yield from objects(child)


def test_the_api_accepts_the_job_and_drops_no_key_of_it(job: Json) -> None:
    check(job)


def test_a_misspelt_key_is_found_wherever_it_stands() -> None:
    """Each object of the job in turn gets a key that nobody knows."""
    tried = 0
    for number in range(sum(1 for _ in objects(gpu_job()))):
        job = copy.deepcopy(gpu_job())
        target = list(objects(job))[number]
        if "memory" in target:
            continue  # requests and limits: any resource may be asked for
        target["misspelt"] = "x"
        with pytest.raises(REFUSED):
            check(job)
        tried += 1
    assert tried > 25


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("slotsPerWorker",), "4"),
        (("launcherCreationPolicy",), "WaitForWorkers"),
        (("runPolicy", "cleanPodPolicy"), "running"),
        (("mpiReplicaSpecs", "Launcher", "replicas"), 2),
        (("mpiReplicaSpecs", "Worker", "restartPolicy"), "Always"),
        (("mpiReplicaSpecs", "Worker", "template", "spec", "containers"), {}),
    ],
)
def test_a_value_of_another_kind_is_found(path: tuple[str, ...], value: object) -> None:
    job = gpu_job()
    target = job["spec"]
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(REFUSED):
        check(job)


def test_the_published_schema_accepts_the_job(job: Json) -> None:
    crd = os.environ.get("MPIJOB_CRD")
    if crd is None:
        pytest.skip("LOUD SKIP: MPIJOB_CRD names no file with the operator's published schema")
    check_against_crd(job, Path(crd))


def test_a_published_schema_is_read_strictly(tmp_path: Path) -> None:
    """A custom resource with one known field, and one that takes all."""
    fields = {
        "known": {"type": "integer"},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    }
    spec = {"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}}
    crd = {"spec": {"versions": [{"name": "v2beta1", "schema": {"openAPIV3Schema": spec}}]}}
    (tmp_path / "crd.yaml").write_text(yaml.safe_dump(crd))
    check_against_crd({"spec": {"known": 1, "open": {"all": 1}}}, tmp_path / "crd.yaml")
    for job in ({"spec": {"unknown": 1}}, {"spec": {"known": "1"}}, {"spec": {}, "more": 1}):
        with pytest.raises(REFUSED):
            check_against_crd(job, tmp_path / "crd.yaml")
    assert strict({"type": "object"}) == {"type": "object"}


def test_images_are_those_of_the_docker_folder(cpu_job: Json) -> None:
    readme = (REPO / "docker/README.md").read_text(encoding="utf-8")
    for job, image in ((gpu_job(), "horovod-yolo:gpu"), (cpu_job, "horovod-yolo:cpu")):
        assert [container(job, role)["image"] for role in ("Launcher", "Worker")] == [image, image]
        assert image in readme


def test_workers_run_the_sshd_of_the_image_as_its_user(job: Json) -> None:
    (sshd,) = container(job, "Worker")["command"]
    script = REPO / Path(sshd).relative_to("/opt/horovod_yolo")
    assert os.access(script, os.X_OK)
    assert job["spec"]["sshAuthMountPath"] == "/home/trainer/.ssh"
    for role in ("Launcher", "Worker"):
        assert pod(job, role)["securityContext"]["runAsUser"] == 1000
    (port,) = container(job, "Worker")["ports"]
    assert f":-{port['containerPort']}}}" in script.read_text(encoding="utf-8")
    assert container(job, "Worker")["readinessProbe"]["tcpSocket"]["port"] == port["name"]


def test_a_slot_is_a_gpu() -> None:
    limits = container(gpu_job(), "Worker")["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == gpu_job()["spec"]["slotsPerWorker"]
    assert "nvidia.com/gpu" not in json.dumps(pod(gpu_job(), "Launcher"))


def test_on_cpus_nothing_asks_for_a_gpu(cpu_job: Json) -> None:
    assert "nvidia" not in json.dumps(cpu_job) and "gpu" not in json.dumps(cpu_job)


def test_data_runs_and_shared_memory_are_mounted(job: Json) -> None:
    volumes = {volume["name"]: volume for volume in pod(job, "Worker")["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container(job, "Worker")["volumeMounts"]}
    assert set(mounts) == {"/data", "/runs", "/dev/shm"}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert mounts["/data"]["readOnly"]
    shm = volumes[mounts["/dev/shm"]["name"]]["emptyDir"]
    assert shm["medium"] == "Memory" and shm["sizeLimit"].endswith("Gi")


def test_the_launcher_starts_our_training_on_all_workers(job: Json, tmp_path: Path) -> None:
    """With a hostfile as the operator writes it, and with the variables that it sets."""
    name, spec = job["metadata"]["name"], job["spec"]
    slots, workers = spec["slotsPerWorker"], spec["mpiReplicaSpecs"]["Worker"]["replicas"]
    hosts = [f"{name}-worker-{i}.{name}.team-a.svc" for i in range(workers)]
    (tmp_path / "hostfile").write_text("".join(f"{host} slots={slots}\n" for host in hosts))
    launcher = container(job, "Launcher")
    words = [word.replace("/etc/mpi/", f"{tmp_path}/") for word in launcher["command"] + launcher["args"]]
    assert words[:2] == ["horovod-yolo", "launch"] and f"{tmp_path}/hostfile" in words
    own = {variable["name"]: variable["value"] for variable in launcher["env"]}
    of_operator = {"OMPI_MCA_orte_default_hostfile": "/etc/mpi/hostfile", "NVIDIA_VISIBLE_DEVICES": ""}
    shown = subprocess.run(
        [sys.executable, "-m", "horovod_yolo.cli", "launch", "--dry-run", *words[2:]],
        cwd=REPO,
        env={"PATH": os.environ["PATH"], **own, **of_operator},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stderr
    placed = ",".join(f"{host}:{slots}" for host in hosts)
    assert f" -np {slots * workers} -H {placed} " in shown.stdout
    assert " -mca btl_tcp_if_include eth0 " in shown.stdout and " -x OMP_NUM_THREADS " in shown.stdout
    assert shown.stdout.rstrip().endswith(" -m horovod_yolo.cli " + " ".join(launcher["args"]))


def test_the_training_of_the_job_is_one_that_starts(job: Json) -> None:
    subcommand, *flags = container(job, "Launcher")["args"]
    given = vars(train_parser().parse_strictly(flags))
    given.pop("resume")
    ranks = job["spec"]["slotsPerWorker"] * job["spec"]["mpiReplicaSpecs"]["Worker"]["replicas"]
    config_from_flags(given).check_world(ranks)
    mounts = {mount["mountPath"] for mount in container(job, "Worker")["volumeMounts"]}
    folders = {str(given[flag]).split("/")[1] for flag in ("data", "project", "cache_dir")}
    assert subcommand == "train" and {f"/{folder}" for folder in folders} < mounts
