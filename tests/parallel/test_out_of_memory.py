"""Real ranks of which one has less memory than the others: passes that fit, a step done again, an end."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

from tests.helpers import ranks
from tests.helpers.runs import checkpoint, steps

IMAGES = 28  # of the data set, and of a batch
SHARE = IMAGES // 2
FLAGS = ["--cfg=yolov5n", "--workers=0", "--noplots", "--noval", "--noautoanchor", f"--batch={IMAGES}"]
# The system hands out memory, and takes it back, block by block: what is left can be foretold.
BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
HEAD = """
import re, resource, sys
from pathlib import Path
from horovod_yolo.assembly import fitting
from horovod_yolo.assembly.ending import leave
from horovod_yolo.cli import train_main
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.training.step import Stepper

mine, numbers = launcher().rank == 1, iter(range(1, 100))
"""
# Rank 1 has so many MB left from when it looks for the size of a pass, and fewer in its second step.
# PyTorch's own convolutions say where they get no memory; those of oneDNN may end the process instead.
LIMITED = (
    HEAD
    + """
import albumentations  # images are made in the step, and one in 25 of them would import it there
import torch
torch.backends.mkldnn.set_flags(False)

def leave_mb(megabytes):
    if mine:
        used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
        limit = used + (megabytes << 20) if megabytes else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

room, step = fitting._room, Stepper.step

def limited_room(*given):
    leave_mb(90)
    return room(*given)

def limited_step(*given):
    leave_mb(48 if next(numbers) == 2 else 0)
    result = step(*given)
    leave_mb(0)
    return result

fitting._room, Stepper.step = limited_room, limited_step
if __name__ == "__main__":
    leave(train_main(sys.argv[1:]))
"""
)
# Rank 1 runs out of memory on its way back through the network: once in its second step, always in its third.
FAILING = (
    HEAD
    + """
from horovod_yolo.models.detector import Detector

forward, step, now = Detector.forward, Stepper.step, {"step": 0, "lacks": 0}

def lack(gradient):
    if now["lacks"] and len(gradient):
        now["lacks"] -= 1
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: it is pretended")

def failing(self, images):
    if mine and self.training:
        maps = self.backbone(images)
        maps[0].register_hook(lack)
        return self.head(self.neck(maps))
    return forward(self, images)

def failing_step(*given):
    now["step"] += 1
    now["lacks"] = {2: 1, 3: 9}.get(now["step"], 0)
    return step(*given)

Detector.forward, Stepper.step = failing, failing_step
if __name__ == "__main__":
    leave(train_main(sys.argv[1:]))
"""
)


def test_passes_fit_the_smallest_rank_and_a_step_that_does_not_is_done_again(
    digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "limited.py").write_text(LIMITED)
    flags = [*FLAGS, "--img=128", "--epochs=3", "--micro-batch=auto", "--data", digits, "--project", tmp_path]
    job = ranks.run([tmp_path / "limited.py", *flags], 2, "torchrun", **BLOCKS)
    assert job.code == 0, job.output
    found = re.search(rf"(\d+) images in a pass fit on each rank, of its {SHARE}", job.output)
    assert found, job.output
    images = int(found[1])
    assert 2 <= images < SHARE
    lack = r"this host is out of memory \(.*can't allocate memory.*\) \(on rank 1 of 2\)"
    assert re.search(f"{lack}: the step is done again, and the run goes on", job.output), job.output
    assert [row["images"] for row in steps(tmp_path / "exp")] == [IMAGES] * 3
    state = checkpoint(tmp_path / "exp")
    config = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    assert 1 <= config["micro_batch"] == state["config"]["micro_batch"] <= images // 2
    assert state["passes"] >= math.ceil(SHARE / config["micro_batch"])


@pytest.mark.slow
def test_a_second_lack_ends_all_ranks_with_one_line(digits: Path, tmp_path: Path) -> None:
    """Over Horovod, with sums in the middle of the pass that the rank has to leave."""
    (tmp_path / "failing.py").write_text(FAILING)
    flags = [*FLAGS, "--img=64", "--epochs=4", "--sync-bn", "--data", digits, "--project", tmp_path]
    job = ranks.run([tmp_path / "failing.py", *flags], 2, "gloo")
    assert job.code == 1, job.output
    assert job.output.count("the step is done again") == 2, job.output
    assert job.output.count("training stopped: this host is out of memory") == 1, job.output
    assert "Traceback" not in job.output.replace('Traceback (most recent call last):\n  File "/', "", 1), (
        job.output
    )
    assert len(steps(tmp_path / "exp")) == 2
