"""Promise 1 to the bit, with real processes and networks: fixed slices on any number of ranks.

YOLOv5's own rates and augmentation, without synchronised batch norm. 28 images in batches of 13 and five
slices: two ranks hold two and three of them, three ranks one, two and two, and the last batch leaves three
empty. More ranks and other shares are in tests/unit/training/test_slices.py, for single steps, and in
tests/unit/assembly/test_matrix_of_ranks.py, for whole runs.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from horovod_yolo.distributed import host_memory
from tests.helpers import ranks
from tests.helpers.runs import sha256

V = 5
RUN = "--img 128 --batch 13 --epochs 20 --max-steps 6 --noplots --workers 0"

# A rank that says how its gradients reach the others, who may have no more memory together than so much.
WITH_MEMORY = """
import sys

from horovod_yolo.assembly.ending import leave
from horovod_yolo.cli import train_main
from horovod_yolo.distributed import host_memory

host_memory.MOST_BYTES = {most}
among = host_memory.HostMemory.among


def telling(comm, count, dtype):
    memory = among(comm, count, dtype)
    print(f"gradients: {dtype} over {'messages' if memory is None else 'memory'}", flush=True)
    return memory


host_memory.HostMemory.among = telling

if __name__ == "__main__":
    leave(train_main(sys.argv[1:]))
"""


def trained(data: Path, folder: Path, cfg: str, launcher: str, size: int, over: str = "messages") -> str:
    """A digest of all that may not depend on who made a run."""
    script = folder / f"{over}.py"
    most = host_memory.MOST_BYTES if over == "memory" else 0
    script.write_text(WITH_MEMORY.replace("{most}", str(most)))
    name = f"{cfg}-{launcher}{size}-{over}"
    place = ("--data", data, "--cfg", cfg, "--project", folder, "--name", name, "--slices", str(V))
    job = ranks.run([script, *map(str, place), *RUN.split()], size, launcher)
    assert job.code == 0, job.output
    assert job.output.count(f"gradients: torch.int32 over {over}") == size, job.output
    results = ranks.results(folder / name)
    assert (results["world_size"], results["slices"], results["bitwise"]) == (size, V, "yes")
    return sha256(folder / name)


@pytest.mark.parametrize(
    "cfg",
    [
        "yolov5n",
        pytest.param("yolov8n", marks=pytest.mark.slow),
        pytest.param("yolo26n", marks=pytest.mark.slow),
    ],
)
def test_engines_and_shares_change_no_bit(digits: Path, tmp_path: Path, cfg: str) -> None:
    """Ranks of one host add up in its memory; then through each back end, as between hosts."""
    found = {("alone",): trained(digits, tmp_path, cfg, "plain", 1)}
    for way in (("gloo", 2, "memory"), ("gloo", 3), ("mpirun", 3), ("torchrun", 2)):
        found[way] = trained(digits, tmp_path, cfg, *way)  # type: ignore[arg-type]
    assert len(set(found.values())) == 1, found


# A rank on cores of its own choice, whose launcher has not set its threads.
ON_CORES = """
import os, sys

os.environ.pop("OMP_NUM_THREADS")
cores = {cores}[int(os.environ.get("HOROVOD_RANK", 0))]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
from horovod_yolo.assembly.ending import leave
from horovod_yolo.cli import train_main

if __name__ == "__main__":
    leave(train_main(sys.argv[1:]))
"""
two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


def on_cores(data: Path, folder: Path, cores: tuple[int, ...], flags: str, threads: int) -> str:
    """The digest of a run on as many ranks, each on so many cores, that computes on so many threads."""
    name = "-".join(map(str, cores))
    script = folder / f"on{name}.py"
    script.write_text(ON_CORES.replace("{cores}", str(cores)))
    place = ["--data", data, "--cfg", "yolov5n", "--slices", "2", "--project", folder, "--name", name]
    job = ranks.run([script, *place, *flags.split()], len(cores), "gloo" if cores[1:] else "plain")
    assert job.code == 0, job.output
    assert ranks.results(folder / name)["threads"] == threads
    return sha256(folder / name)


@two_cores
def test_threads_that_nobody_has_chosen_are_a_rank_s_share_of_the_cores(digits: Path, tmp_path: Path) -> None:
    """Without OMP_NUM_THREADS and --threads: two ranks on two cores have one thread each, as one on one."""
    short = RUN.replace("--max-steps 6", "--max-steps 3")
    found = {cores: on_cores(digits, tmp_path, cores, short, 1) for cores in ((2, 2), (1,))}
    assert len(set(found.values())) == 1, found


@pytest.mark.slow
@two_cores
@pytest.mark.parametrize("threads", [1, 2])
def test_cores_of_ranks_change_no_bit(digits: Path, tmp_path: Path, threads: int) -> None:
    """Of one rank, of two that share the cores, and of two that have one and two."""
    found = {}
    for cores in ((2,), (2, 2), (1, 2), (1,)):
        found[cores] = on_cores(digits, tmp_path, cores, f"{RUN} --threads {threads}", threads)
    assert len(set(found.values())) == 1, found


def recipe() -> list[list[str]]:
    """The two commands of docs/recipes.md, as words."""
    text = (ranks.REPOSITORY / "docs/recipes.md").read_text(encoding="utf-8")
    block = text.partition("## The very bits of eight ranks on one machine")[2].split("```")[1]
    return [shlex.split(line) for line in block.splitlines()[1:]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_recipe_of_eight_ranks_on_one_machine(digits: Path, tmp_path: Path) -> None:
    """Its flags, on a small data set and for one step; the desk's rank has more cores than the cluster's."""
    small = f"--data {digits} --img 64 --epochs 1 --max-steps 1 --noplots --workers 0 --project {tmp_path}"
    cluster, desk = recipe()
    assert cluster[:5] == ["horovodrun", "-np", "8", "python", "train.py"] and desk[:2] == cluster[3:5]
    sleeping = {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin take the cores that the others need
    for command, size, launcher, cores in ((cluster[4:], 8, "gloo", "1"), (desk[1:], 1, "plain", "2")):
        settings = {**sleeping, "OMP_NUM_THREADS": cores}
        job = ranks.run([*command, *small.split()], size, launcher, timeout=600, **settings)
        assert job.code == 0, job.output
        assert "the same results with --slices 8 --threads 2 on any number of ranks" in job.output
    assert ranks.results(tmp_path / "cluster")["world_size"] == 8
    assert sha256(tmp_path / "cluster") == sha256(tmp_path / "desk")
