"""A rank that flips a bit, in real processes: replay names step, slice and tensor, a check names the rank.

In one process, on more ranks: tests/unit/assembly/test_replay.py and test_double_check.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import ranks

Fault = tuple[int, int, bool]  # rank, step, and whether it comes in every step from that on
TENSOR = "backbone.down2.conv.weight"
FLAGS = "--cfg yolov5n --img 64 --batch 13 --slices 4 --epochs 2 --workers 0 --noplots --noval --device cpu"
TRAINING = f"""
import sys
from horovod_yolo.assembly.ending import leave
from horovod_yolo.cli import train_main
from tests.helpers.flipped_bits import flipped_bit

if __name__ == "__main__":
    rank, step, always = json.loads(sys.argv[1])
    with flipped_bit(rank, step, {TENSOR!r}, always=always):
        leave(train_main(sys.argv[2:]))
"""


def train(
    data: Path, folder: Path, launcher: str, size: int, fault: tuple[int, int, bool], flags: str
) -> str:
    """A run in ``folder/run`` in which a rank flips bits; what it printed after its exit code."""
    script = folder / "faulty.py"
    script.write_text(f"import json\n{TRAINING}")
    place: list[str | Path] = ["--data", data, "--project", folder, "--name", "run"]
    place += [*FLAGS.split(), *flags.split()]
    job = ranks.run([script, json.dumps(fault), *place], size, launcher, PYTHONPATH=str(ranks.REPOSITORY))
    return f"{job.code}\n{job.output}"


def test_replay_on_one_process_names_the_slice_of_two_ranks(digits: Path, tmp_path: Path) -> None:
    printed = train(digits, tmp_path, "gloo", 2, (1, 2, False), "--max-steps 2 --commit-every 1 --record")
    assert printed.startswith("0\n"), printed
    command: list[str | Path] = ["-m", "horovod_yolo.cli", "replay", tmp_path / "run", "--steps", "2"]
    job = ranks.run([*command, "--project", tmp_path, "--name", "again"], 1, "plain")
    assert job.code == 1, job.output
    assert "step 2 differs; on 1 rank, from last.2.pt of step 1" in job.output, job.output
    assert f"slice 2 of batch 0: the gradient of {TENSOR} differs" in job.output, job.output
    answer = json.loads((tmp_path / "again" / "replay.json").read_text())
    assert answer["different_steps"][0]["gradients"] == [[0, 2, TENSOR]]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "size"), [("mpi", 3), ("torchrun", 2)])
def test_a_check_names_the_rank_while_training(
    digits: Path, tmp_path: Path, launcher: str, size: int
) -> None:
    """With two ranks nobody can say which of them."""
    printed = train(digits, tmp_path, launcher, size, (1, 2, True), "--max-steps 3 --check-every 1")
    assert not printed.startswith("0\n"), printed
    who = "training stopped: rank 1 (" if size == 3 else " or rank "
    assert who in printed and "COMPUTES WRONGLY: in step 2, slice " in printed, printed
    assert printed.count("COMPUTES WRONGLY") == 1 and "Traceback" not in printed.split("COMPUTES")[0], printed
    assert (tmp_path / "run" / "weights" / "last.pt").exists()
