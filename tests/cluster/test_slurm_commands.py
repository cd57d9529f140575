"""Slurm itself plans each documented job: ``sbatch --test-only``, which needs nodes and starts nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster import jobs, slurm
from tests.cluster.hosts import Cluster
from tests.cluster.slurm import Slurm
from tests.helpers.command_lines import DOCS, REPO, fenced, simple_commands
from tests.helpers.ranks import Finished

NODES, CPUS, GPUS = 4, 16, 4  # the largest that the documents ask for
PLANNED = re.compile(
    r"sbatch: Job \d+ to start at \S+ using (\d+) processors on nodes (\S+) in partition all"
)
SCRIPTS = sorted(
    path for path in (REPO / "launch").rglob("*") if path.is_file() and "\n#SBATCH " in path.read_text()
)
USAGES = [
    line.strip("# ")
    for path in SCRIPTS
    for line in path.read_text().splitlines()
    if re.match(r"#\s+sbatch ", line)
]
COMMANDS = [line.words for document in DOCS for line in fenced(document) if line.words[0] == "sbatch"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    reason = slurm.why_not()
    if reason is not None:
        pytest.skip(f"LOUD SKIP: {reason}; no documented job is planned by Slurm")
    with Cluster(NODES, tmp_path_factory.mktemp("s")) as cluster, Slurm(cluster, CPUS, GPUS) as started:
        yield started


def planned(at: Slurm, words: Sequence[str | Path]) -> Finished:
    """What ``sbatch --test-only`` says of a job."""
    return jobs.run(at.head, ["sbatch", "--test-only", *words], timeout=30)


def wanted(words: Sequence[str]) -> int:
    """Nodes that a command line asks for; else those of launch/slurm.sbatch."""
    return next((int(word[8:]) for word in words if word.startswith("--nodes=")), 2)


def test_there_are_jobs_to_plan() -> None:
    assert [path.name for path in SCRIPTS] == ["slurm.sbatch"]
    assert len(USAGES) == 2 and len(COMMANDS) >= 6
    assert not [
        path for path in (REPO / "docs").iterdir() if path.is_file() and b"\n#SBATCH " in path.read_bytes()
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_planned_as_it_stands(nodes: Slurm, script: Path) -> None:
    said = planned(nodes, [script, "--", "train"])
    found = PLANNED.search(said.output)
    assert said.code == 0 and found, said.output
    assert (int(found[1]), found[2]) == (32, "host[1-2]")  # two nodes, four tasks of four cores on each


@pytest.mark.parametrize(
    "words",
    [*COMMANDS, *(next(simple_commands(re.sub(r"\[.*?\] ", "", usage))) for usage in USAGES)],
    ids=shlex.join,
)
def test_documented_jobs_are_planned(nodes: Slurm, words: Sequence[str]) -> None:
    said = planned(nodes, words[1:])
    found = PLANNED.search(said.output)
    assert said.code == 0 and found, said.output
    assert found[2] == f"host[1-{wanted(words)}]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--nodes=5", "Requested node configuration is not available"),
        ("--cpus-per-task=5", "Requested node configuration is not available"),
        ("--gpus-per-node=5", "Requested node configuration is not available"),
        ("--partition=none", "invalid partition specified"),
        ("--time=soon", "Invalid --time specification"),
    ],
)
def test_what_no_node_can_give_is_refused(nodes: Slurm, options: str, message: str) -> None:
    said = planned(nodes, [options, "launch/slurm.sbatch", "--", "train"])
    assert said.code and message in said.output, said.output


def test_a_directive_of_the_script_counts(nodes: Slurm, folder: Path) -> None:
    script = folder / "slurm.sbatch"
    script.write_text(SCRIPTS[0].read_text().replace("--nodes=2", "--nodes=9"))
    said = planned(nodes, [script, "--", "train"])
    assert said.code and "node configuration is not available" in said.output, said.output
    script.write_text(SCRIPTS[0].read_text().replace("--requeue", "--requeues"))
    said = planned(nodes, [script, "--", "train"])
    assert said.code and "unrecognized option '--requeues'" in said.output, said.output
