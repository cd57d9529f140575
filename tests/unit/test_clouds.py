"""Jobs for clouds: their files are what the APIs take, and hosts find each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from horovod_yolo.config.load import config_from_flags, train_parser

REPO = Path(__file__).resolve().parents[2]
CLOUDS = REPO / "launch" / "clouds"
SCRIPT = CLOUDS / "torchrun.sh"
SAGEMAKER = {"current_host": "algo-2", "hosts": ["algo-2", "algo-1"], "network_interface_name": "eth7"}
VERTEX = {
    "cluster": {"workerpool1": ["b-0:2222", "b-1:2222"], "workerpool0": ["a-0:2222"]},
    "task": {"type": "workerpool1", "index": 1},
}
CHECK = """
import json, sys
from pathlib import Path
import yaml
from azure.ai.ml import load_job
from google.cloud.aiplatform_v1.types import CustomJobSpec

job = load_job(sys.argv[1])
assert job._validate().passed, job._validate()
spec = CustomJobSpec.from_json(json.dumps(yaml.safe_load(Path(sys.argv[2]).read_text())))
print(job.resources.instance_count, sum(pool.replica_count for pool in spec.worker_pool_specs))
"""


def run(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script with a torchrun that prints what it is given."""
    fake = tmp_path / "bin" / "torchrun"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/bin/sh\necho "$@"\necho "card ${GLOO_SOCKET_IFNAME-} ${NCCL_SOCKET_IFNAME-}"\n')
    fake.chmod(0o755)
    environ = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}", **variables}
    return subprocess.run([SCRIPT, *arguments], env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("told", "expected", "card"),
    [
        ({}, "--nnodes 1 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:29400", ""),
        (
            {"SAGEMAKER": SAGEMAKER},
            "--nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint algo-1:29400",
            "eth7",
        ),
        (
            {"CLUSTER_SPEC": VERTEX},
            "--nnodes 3 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint a-0:29400",
            "",
        ),
    ],
    ids=["alone", "sagemaker", "vertex"],
)
def test_hosts_find_each_other(tmp_path: Path, told: Mapping[str, Any], expected: str, card: str) -> None:
    config = tmp_path / "resourceconfig.json"
    if "SAGEMAKER" in told:
        config.write_text(json.dumps(told["SAGEMAKER"]))
    variables = {"CLUSTER_SPEC": json.dumps(told["CLUSTER_SPEC"])} if "CLUSTER_SPEC" in told else {}
    done = run(tmp_path, "train", "--data", "d.yaml", RANKS="2", RESOURCE_CONFIG=str(config), **variables)
    assert done.returncode == 0, done.stderr
    command, cards = done.stdout.splitlines()
    assert command.startswith(expected + " ")
    assert command.endswith(" -m horovod_yolo.cli train --data d.yaml")
    assert cards.split() == (["card", card, card] if card else ["card"])


def test_a_script_without_a_command_says_so(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: no command")


def test_hosts_that_are_not_told_end_in_a_line(tmp_path: Path) -> None:
    done = run(tmp_path, "train", RESOURCE_CONFIG=str(tmp_path / "none"), CLUSTER_SPEC='{"cluster": {}}')
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr


def commands() -> dict[str, list[str]]:
    """The words after ``train`` of each job."""
    sagemaker = json.loads((CLOUDS / "sagemaker.json").read_text())["AlgorithmSpecification"]
    azure = yaml.safe_load((CLOUDS / "azureml.yaml").read_text())["command"]
    vertex = yaml.safe_load((CLOUDS / "vertex.yaml").read_text())["workerPoolSpecs"]
    assert all(pool["containerSpec"] == vertex[0]["containerSpec"] for pool in vertex)
    found = {
        "sagemaker": sagemaker["ContainerArguments"],
        "azureml": azure.split()[1:],
        "vertex": vertex[0]["containerSpec"]["args"],
    }
    assert all(words[0] == "train" for words in found.values())
    return {name: words[1:] for name, words in found.items()}


@pytest.mark.parametrize("cloud", ["sagemaker", "azureml", "vertex"])
def test_commands_are_accepted(cloud: str) -> None:
    given = vars(train_parser().parse_strictly(commands()[cloud]))
    assert given.pop("resume") == "auto"
    config_from_flags(given).check_world(8)


def test_sagemaker_takes_the_request() -> None:
    session = pytest.importorskip("botocore.session", reason="LOUD SKIP: `make setup` installs botocore")
    from botocore.validate import ParamValidator

    sagemaker = session.get_session().get_service_model("sagemaker")
    shape = sagemaker.operation_model("CreateTrainingJob").input_shape
    request = json.loads((CLOUDS / "sagemaker.json").read_text())
    assert ParamValidator().validate(request, shape).generate_report() == ""
    broken = {**request, "ResourceConfig": {**request["ResourceConfig"], "InstanceCount": "2", "Extra": 1}}
    report = ParamValidator().validate(broken, shape).generate_report()
    assert "InstanceCount" in report and "Extra" in report


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_azure_and_vertex_take_the_jobs(tmp_path: Path) -> None:
    """Their packages are large: they get an environment of their own."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    packages = ("azure-ai-ml==1.35.2", "google-cloud-aiplatform==2.7.0", "PyYAML")
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    files = (CLOUDS / "azureml.yaml", CLOUDS / "vertex.yaml")
    done = subprocess.run([python, "-c", CHECK, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2"]
