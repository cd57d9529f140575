"""The jobs for Kubeflow Trainer: what its API accepts, and that they start what we ship."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

from horovod_yolo.config.load import config_from_flags, train_parser
from tests.helpers.mpijob import Json
from tests.helpers.trainjob import REFUSED, check, documents, pods
from tests.unit.test_k8s import gpu_job, objects

REPO = Path(__file__).resolve().parents[2]
TORCH, MPI = (REPO / "launch/k8s" / name for name in ("trainjob.yaml", "trainjob-mpi.yaml"))
FILES = pytest.mark.parametrize("path", [TORCH, MPI], ids=lambda path: path.stem)


def containers(path: Path) -> dict[str, Json]:
    """Of the pods of the runtime, by name."""
    found = [pod["spec"]["containers"] for pod in pods(documents(path)["TrainingRuntime"])]
    return {container["name"]: container for (container,) in found}


@FILES
def test_the_api_accepts_all_and_drops_no_key(path: Path) -> None:
    found = documents(path)
    assert found.keys() == {"TrainJob", "TrainingRuntime"}
    for document in found.values():
        check(document)


@FILES
@pytest.mark.parametrize("kind", ["TrainJob", "TrainingRuntime"])
def test_a_misspelt_key_is_found_wherever_it_stands(path: Path, kind: str) -> None:
    whole, tried = documents(path)[kind], 0
    for number in range(sum(1 for _ in objects(whole))):
        document = copy.deepcopy(whole)
        target = list(objects(document))[number]
        if target.keys() & {"memory", "trainer.kubeflow.org/trainjob-ancestor-step"}:
            continue  # of resources and labels any name is one
        target["misspelt"] = "x"
        with pytest.raises(REFUSED):
            check(document)
        tried += 1
    assert tried >= (5 if kind == "TrainJob" else 20)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("numNodes", "2"),
        ("numProcPerNode", "four"),
        ("command", "torchrun"),
        ("env", {"A": "b"}),
        ("args", [1]),
    ],
)
def test_a_value_of_another_kind_is_found(key: str, value: object) -> None:
    job = documents(TORCH)["TrainJob"]
    job["spec"]["trainer"][key] = value
    with pytest.raises(REFUSED):
        check(job)


@FILES
def test_the_job_names_its_runtime_and_a_rank_has_a_gpu(path: Path) -> None:
    found = documents(path)
    job, runtime = found["TrainJob"]["spec"], found["TrainingRuntime"]
    assert job["runtimeRef"] == {"kind": "TrainingRuntime", "name": runtime["metadata"]["name"]}
    assert (
        int(job["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"])
        == job["trainer"]["numProcPerNode"]
    )
    labels = [
        each["template"].get("metadata", {}).get("labels", {})
        for each in runtime["spec"]["template"]["spec"]["replicatedJobs"]
    ]
    assert labels[0] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"} and not any(labels[1:])


@FILES
def test_pods_are_those_of_the_mpijob(path: Path) -> None:
    """One user, no capabilities, the same image, volumes and mounts."""
    replicas = gpu_job()["spec"]["mpiReplicaSpecs"]
    worker = replicas["Worker"]["template"]["spec"]
    node = next(pods(documents(path)["TrainingRuntime"]))["spec"]
    assert node["securityContext"] == worker["securityContext"] and node["volumes"] == worker["volumes"]
    for key in ("image", "securityContext", "volumeMounts"):
        assert containers(path)["node"][key] == worker["containers"][0][key]
    if path == MPI:
        for key in ("command", "ports", "readinessProbe"):
            assert containers(path)["node"][key] == worker["containers"][0][key]
        (launcher,) = replicas["Launcher"]["template"]["spec"]["containers"]
        for key in ("command", "args", "securityContext", "resources"):
            assert containers(path)["launcher"][key] == launcher[key]


@FILES
def test_the_training_is_one_that_starts(path: Path) -> None:
    trainer = documents(path)["TrainJob"]["spec"]["trainer"]
    words = trainer["args"] if path == TORCH else containers(path)["launcher"]["args"][1:]
    given = vars(train_parser().parse_strictly(words))
    assert given.pop("resume") == "auto"
    config_from_flags(given).check_world(trainer["numNodes"] * trainer["numProcPerNode"])


def test_torchrun_takes_the_variables_of_trainer_and_starts_our_command(tmp_path: Path) -> None:
    """What Trainer tells a node in PET_* is enough; the rest of the command line is the job's."""
    trainer = documents(TORCH)["TrainJob"]["spec"]["trainer"]
    own = {variable["name"]: variable["value"] for variable in trainer["env"]}
    assert "SIGUSR1" in own["TORCHELASTIC_SIGNALS_TO_HANDLE"].split(",")
    of_trainer = {
        "PET_NNODES": "1",
        "PET_NPROC_PER_NODE": "2",
        "PET_NODE_RANK": "0",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": "0",
    }
    command = trainer["command"]
    assert command[-2:] == ["horovod-yolo", "train"]
    shown = tmp_path / "shown"
    words = [*command[:-2], "sh", "-c", f"echo $RANK $WORLD_SIZE >> {shown}"]
    done = subprocess.run(
        [str(Path(sys.executable).parent / words[0]), *words[1:]],
        env={"PATH": os.environ["PATH"], **own, **of_trainer, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(shown.read_text().splitlines()) == ["0 2", "1 2"]
