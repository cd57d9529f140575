"""A search on groups of the ranks of one mpirun, of which one is killed; and on ranks of other launchers."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pytest

from tests.helpers import ranks

SECONDS = 240
# A search with a model of a few thousand parameters. One rank kills itself in a step, once.
SCRIPT = """
import os, signal, sys
from pathlib import Path
import pytest
from horovod_yolo.assembly.ending import leave
from horovod_yolo.cli import main
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.training.step import Stepper
from tests.helpers.tiny_zoo import add_tiny

add_tiny(pytest.MonkeyPatch())
moment, victim, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
whole, steps = Stepper.step, []

def step(*arguments):
    steps.append(None)
    if launcher().rank == victim and len(steps) == last:
        moment.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)

Stepper.step = step
if __name__ == "__main__":
    leave(main(["tune", *sys.argv[4:]]))
"""
NOBODY = "-1"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "search.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def flags(digits: Path, tmp_path: Path) -> list[str]:
    space = tmp_path / "space.yaml"
    space.write_text("lr0: {low: 1.0e-3, high: 0.1, log: true}\nfliplr: {low: 0, high: 1}\n")
    model = ["--data", str(digits), "--cfg", "tiny", "--imgsz", "64", "--batch-size", "14", "--workers", "0"]
    place = ["--project", str(tmp_path), "--name", "search", "--space", str(space)]
    return [*model, *place, "--epochs", "3", "--noautoanchor", "--no-prune"]


def job(script: Path, victim: str, step: int, flags: list[str], count: int, launcher: str) -> ranks.Finished:
    variables = {"PYTHONPATH": f"{ranks.REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}
    arguments = [script, script.parent / "moment", victim, str(step), *flags]
    return ranks.finish(ranks.start(arguments, count, launcher, **variables), SECONDS)


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def drawn(row: dict[str, str]) -> tuple[str, str]:
    return row["lr0"], row["fliplr"]


@pytest.mark.parametrize("victim", ["3", pytest.param("0", marks=pytest.mark.slow)])
def test_other_groups_go_on_and_repeat_the_trial_of_a_rank_that_is_killed(
    script: Path, flags: list[str], tmp_path: Path, victim: str
) -> None:
    flags = [*flags, "--trials", "8", "--ranks-per-trial", "2"]
    found = job(script, victim, 9, flags, 4, "recovering")
    assert (tmp_path / "moment").exists(), found.output
    rows = trials(tmp_path / "search")
    lost = [row for row in rows if row["state"] == "lost"]
    done = [row for row in rows if row["state"] == "done"]
    assert len(lost) == 1 and len(done) == 8 and len(rows) == 9, found.output
    (repeated,) = [row for row in done if row["repeats"]]
    assert repeated["repeats"] == lost[0]["trial"] and repeated["folder"] == lost[0]["folder"]
    assert drawn(repeated) == drawn(lost[0])
    assert all(row["epochs"] == "3" for row in done)
    assert "a rank of its group is gone" in found.output, found.output
    assert re.search(r"9 trials: .*8 done", found.output), found.output


def test_without_recovery_all_end_and_the_search_goes_on_later(
    script: Path, flags: list[str], tmp_path: Path
) -> None:
    flags = [*flags, "--trials", "4", "--ranks-per-trial", "1"]
    lost = job(script, "1", 7, flags, 2, "mpirun")
    assert lost.code != 0
    resumed = job(script, NOBODY, 0, ["--resume", str(tmp_path / "search")], 1, "plain")
    assert resumed.code == 0, resumed.output
    rows = trials(tmp_path / "search")
    states = [row["state"] for row in rows]
    assert states.count("done") == 4 and 1 <= states.count("lost") <= 2 and len(rows) < 7
    again = {row["repeats"] for row in rows if row["repeats"]}
    assert again == {row["trial"] for row in rows if row["state"] == "lost"}


@pytest.mark.slow
def test_groups_that_lose_nobody_leave_in_order(script: Path, flags: list[str], tmp_path: Path) -> None:
    found = job(script, NOBODY, 0, [*flags, "--trials", "4", "--ranks-per-trial", "2"], 4, "mpirun")
    assert found.code == 0 and "4 trials: 4 done" in found.output, found.output
    assert "exiting improperly" not in found.output


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["gloo", "torchrun"])
def test_ranks_of_other_launchers_do_a_trial_together(
    script: Path, flags: list[str], tmp_path: Path, launcher: str
) -> None:
    found = job(script, NOBODY, 0, [*flags, "--trials", "2"], 2, launcher)
    assert found.code == 0 and "2 trials: 2 done" in found.output, found.output


@pytest.mark.parametrize(
    ("launcher", "wanted", "words"),
    [
        ("mpirun", "3", "error: --ranks-per-trial 3, and there are 2 ranks. give a number that divides 2"),
        ("plain", "2", "error: --ranks-per-trial 2, and what started this is no launcher"),
    ],
)
def test_groups_that_cannot_be_are_one_line(
    script: Path, flags: list[str], launcher: str, wanted: str, words: str
) -> None:
    count = 1 if launcher == "plain" else 2
    found = job(script, NOBODY, 0, [*flags, "--ranks-per-trial", wanted], count, launcher)
    assert found.code == 2 and words in found.output and "Traceback" not in found.output, found.output
