"""Jobs under a real Slurm: submitted, warned of their time limit, put back into the queue, resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import jobs, slurm
from tests.cluster.hosts import Cluster
from tests.cluster.slurm import Slurm
from tests.helpers.ranks import results
from tests.helpers.runs import checkpoint, steps

FLAGS = "--cfg yolov5n --img 64 --batch 8 --noval --noplots --workers 0 --name run"
ENDS = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    reason = slurm.why_not()
    if reason is not None:
        pytest.skip(f"LOUD SKIP: {reason}; nothing is tested under Slurm")
    with Cluster(2, tmp_path_factory.mktemp("s")) as cluster, Slurm(cluster) as started:
        yield started


def submit(at: Slurm, log: Path, options: str, words: list[str | Path]) -> int:
    """The number of a job of launch/slurm.sbatch."""
    command = [
        "sbatch",
        f"--output={log}",
        "--open-mode=append",
        *options.split(),
        "launch/slurm.sbatch",
        *words,
    ]
    done = jobs.run(at.head, command, timeout=30)
    assert done.code == 0, done.output
    return int(done.output.split()[-1])


def complete(at: Slurm, folder: Path, data: Path, how: list[str], engine: str) -> None:
    """A job of four ranks on two nodes, from its submission to its results."""
    folder.mkdir()
    words = ["train", "--data", data, "--project", folder, "--epochs", "1", *FLAGS.split()]
    words += ["--engine", engine]
    options = "--nodes=2 --ntasks-per-node=2 --cpus-per-task=1"
    job = submit(at, folder / "log", options, [*how, "--", *words])
    assert at.wait(job, ENDS, 150) == "COMPLETED", (folder / "log").read_text()
    assert results(folder / "run")["world_size"] == 4
    assert results(folder / "run")["exit"] == 0


def wait_until_gone(at: Slurm, program: str) -> None:
    """No process of this name is left on any host."""
    deadline = time.monotonic() + 20
    while left := [p for host in at.hosts for p in host.processes() if p.name().startswith(program)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def wait_for_step(folder: Path, number: int) -> None:
    """The run has made so many steps."""
    deadline = time.monotonic() + 60
    while not (folder / "run" / "steps.csv").exists() or len(steps(folder / "run")) < number:
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(1)


@pytest.mark.parametrize(
    ("how", "beside", "engine"),
    [
        ([], ["--srun"], "auto"),
        pytest.param(["--srun"], [], "auto", marks=pytest.mark.slow),
        pytest.param(["--torch", "--max-restarts", "2"], ["--srun"], "torch", marks=pytest.mark.slow),
    ],
    ids=["ssh", "srun", "torch"],
)
def test_a_job_at_its_time_limit_goes_on_later(
    how: list[str], beside: list[str], engine: str, two_nodes: Slurm, folder: Path, digits: Path
) -> None:
    """Warned a minute before the end of two: checkpoint, exit code 3, back into the queue, resumed.

    Meanwhile another job, started the other way, completes beside it on the same nodes.
    """
    words = ["train", "--data", digits, "--project", folder, "--epochs", "100000", "--resume", "auto"]
    options = "--nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --time=2 --signal=B:USR1@60"
    job = submit(two_nodes, folder / "log", options, [*how, "--", *words, *FLAGS.split()])
    two_nodes.wait(job, ["RUNNING"], 30)
    complete(two_nodes, folder / "beside", digits, beside, engine)
    assert two_nodes.wait(job, ["PENDING", *ENDS], 130) == "PENDING", (folder / "log").read_text()
    stopped_at = int(steps(folder / "run")[-1]["step"])
    assert f"step {stopped_at}" in (folder / "log").read_text()
    wait_until_gone(two_nodes, "slurmstepd")  # of the first start: a second one beside it fails
    at_once = ["scontrol", "update", f"JobId={job}", "StartTime=now"]  # Slurm itself would wait two minutes
    two_nodes.ask(at_once)
    assert two_nodes.wait(job, ["RUNNING", *ENDS], 60) == "RUNNING", (folder / "log").read_text()
    wait_for_step(folder, stopped_at + 1)
    numbers = [row["step"] for row in steps(folder / "run")]
    assert numbers == list(range(1, len(numbers) + 1))  # nothing trained twice, nothing left out
    two_nodes.ask(["scancel", str(job)])
    assert two_nodes.wait(job, ENDS, 60) == "CANCELLED"
    wait_until_gone(two_nodes, "python")


@pytest.mark.slow
def test_an_elastic_job_outlives_a_node(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, digits: Path
) -> None:
    """Slurm gives the node up and, by --no-kill, leaves the job alone; scancel ends it with a checkpoint."""
    words = ["train", "--data", digits, "--project", folder, "--epochs", "100000", "--commit-every", "2"]
    options = "--no-kill --nodes=2 --ntasks-per-node=1 --cpus-per-task=1"
    with Cluster(2, tmp_path_factory.mktemp("s")) as cluster, Slurm(cluster) as two_nodes:
        job = submit(two_nodes, folder / "log", options, ["--elastic", "--", *words, *FLAGS.split()])
        wait_for_step(folder, 3)
        cluster["host2"].power_off()
        two_nodes.hosts.remove(cluster["host2"])
        deadline = time.monotonic() + 120
        while "down" not in two_nodes.ask(["sinfo", "-h", "-n", "host2", "-o", "%T"]):
            assert time.monotonic() < deadline, "Slurm has not noticed"
            time.sleep(1)
        assert two_nodes.state(job) == "RUNNING", (folder / "log").read_text()
        wait_for_step(folder, len(steps(folder / "run")) + 3)
        two_nodes.ask(["scancel", str(job)])
        assert two_nodes.wait(job, ENDS, 60) == "CANCELLED"
        wait_until_gone(two_nodes, "python")
    log = (folder / "log").read_text()
    assert "1 ranks go on from step" in log
    assert checkpoint(folder / "run")["step"] == steps(folder / "run")[-1]["step"], log
