"""Promise 1 to the bit, with real processes and networks: fixed slices on any number of ranks.

YOLOv5's own rates and augmentation, without synchronised batch norm. 28 images in batches of 13 and three
slices: their sizes differ, two ranks hold one and two of them, and the last batch leaves one empty. The
arithmetic on more ranks and other shares is in tests/unit/training/test_slices.py.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from horovod_yolo.distributed.agreement import checksum
from tests.helpers import ranks
from tests.helpers.runs import sha256, steps

FLAGS = "--img 128 --batch 13 --slices 3 --epochs 20 --max-steps 6 --noplots --workers 0"


def trained(data: Path, folder: Path, cfg: str, launcher: str, size: int, *flags: object) -> dict[str, Any]:
    """Everything of a run that may not depend on who made it."""
    name = f"{cfg}-{launcher}{size}"
    given = flags or ("--data", data, "--cfg", cfg, "--project", folder, "--name", name, *FLAGS.split())
    job = ranks.run(["train.py", *given], size, launcher)
    assert job.code == 0, job.output
    run = folder / name
    results = ranks.results(run)
    assert (results["world_size"], results["slices"], results["bitwise"]) == (size, 3, "yes")
    state = torch.load(run / "weights" / "last.pt", weights_only=True)
    moments = state["optimizer"]["state"]
    tensors = {
        f"{n}.{k}": v for n, own in moments.items() for k, v in own.items() if isinstance(v, torch.Tensor)
    }
    keys = ("box_loss", "cls_loss", "grad_norm")
    return {
        "weights": checksum({**state["model"], **tensors, **state["exchange"]}),
        "average": checksum(state["ema"]["weights"]),
        "losses": [[row[key] for key in keys if key in row] for row in steps(run)],
        "metrics": results["metrics"],
    }


@pytest.mark.parametrize(
    "cfg",
    [
        "yolov5n",
        pytest.param("yolov8n", marks=pytest.mark.slow),
        pytest.param("yolo26n", marks=pytest.mark.slow),
    ],
)
def test_engines_and_shares_change_no_bit(digits: Path, tmp_path: Path, cfg: str) -> None:
    alone = trained(digits, tmp_path, cfg, "plain", 1)
    for launcher, size in (("gloo", 2), ("mpi", 3), ("torchrun", 2)):
        assert trained(digits, tmp_path, cfg, launcher, size) == alone, (launcher, size)


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


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("threads", [1, 2])
def test_cores_of_ranks_change_no_bit(digits: Path, tmp_path: Path, threads: int) -> None:
    """Of one rank, of two that share the cores, and of two that have one and two."""
    found = {}
    for cores in ((2,), (2, 2), (1, 2), (1,)):
        name = "-".join(map(str, cores))
        script = tmp_path / f"on{name}.py"
        script.write_text(ON_CORES.replace("{cores}", str(cores)))
        flags = f"--cfg yolov5n --slices 2 --threads {threads} {FLAGS.replace('--slices 3', '')}"
        place = ["--data", digits, "--project", tmp_path, "--name", name]
        job = ranks.run([script, *place, *flags.split()], len(cores), "gloo" if cores[1:] else "plain")
        assert job.code == 0, job.output
        assert ranks.results(tmp_path / name)["threads"] == threads
        found[cores] = sha256(tmp_path / name)
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
