"""Steps of a run made once more, in one process: the same on any number of ranks, unless one was wrong.

28 images in batches of 13 and four slices, six steps.
"""

from __future__ import annotations

import hashlib
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.replay import Replayed, ReplayOptions, replay
from horovod_yolo.core.errors import UserError
from tests.helpers.flipped_bits import flipped_bit
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import run_world
from tests.parallel.test_vanishing_data import break_images

from .disturbed import job
from .test_run import settings

pytestmark = pytest.mark.usefixtures("tiny")

TENSOR = "backbone.fine.conv.weight"


def run_of(data: Path, folder: Path, ranks: int = 2, fault: Any = None, **changes: Any) -> Path:
    """A run of two epochs whose last three commits are of steps 4, 5 and 6."""
    flags = {"cfg": NAME, "batch_size": 13, "slices": 4, "noplots": True, "noval": True, "commit_every": 1}
    config = settings(data, cache_dir=str(folder / "cache"), **{**flags, **changes})
    with fault or nullcontext():
        run_world(ranks, job(config, folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(digits, tmp_path_factory.mktemp("run"), save_period=1)


def replayed(run: Path, steps: tuple[int, int | None], folder: Path, ranks: int = 1) -> Replayed:
    options = ReplayOptions(str(run), *steps, project=str(folder / "replays"))
    return run_world(ranks, lambda comm: replay(options, comm))[0]


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """What is in a folder, and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files
    }


@pytest.mark.parametrize("ranks", [1, 3])
def test_on_any_number_of_ranks_steps_come_again(run: Path, tmp_path: Path, ranks: int) -> None:
    before = contents(run)
    outcome = replayed(run, (5, None), tmp_path, ranks)
    assert outcome.same and outcome.comparison.equal == [4, 5, 6]  # from the end of the first epoch
    assert outcome.lines()[0] == (
        f"steps 4 to 6 are the same, on {ranks} rank{'s' * (ranks > 1)}, from epoch1.pt of step 3: "
        "losses and norm of the gradient, weights (digest)"
    )
    same = "weights, averages and optimizer state are the same"
    assert outcome.lines()[1:] == [f"last.2.pt of step 5: {same}", f"last.pt of step 6: {same}"]
    assert contents(run) == before, "the run is as it was"


@pytest.fixture(scope="module")
def faulty(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two ranks the second flips a bit in step 4, in the third of four slices; the last step is 5."""
    fault = flipped_bit(rank=1, step=4, name=TENSOR)
    folder = tmp_path_factory.mktemp("faulty")
    return run_of(digits, folder, fault=fault, max_steps=5, save_period=1, record=3)


def test_the_first_step_that_was_wrong_is_named(faulty: Path, tmp_path: Path) -> None:
    outcome = replayed(faulty, (4, 5), tmp_path, 3)
    assert not outcome.same
    assert [difference.step for difference in outcome.comparison.differences] == [4, 5]
    assert outcome.comparison.differences[0].columns.keys() == {"grad_norm", "digest"}
    head, *lines = outcome.lines()
    assert head == "step 4 differs; on 3 ranks, from epoch1.pt of step 3"
    assert lines[0].startswith("grad_norm  run ") and lines[1].startswith("digest     run 0x")
    assert lines[2] == f"slice 2 of batch 0: the gradient of {TENSOR} differs"  # rank 1 of 2 has 2 and 3
    first, second = outcome.comparison.differences
    assert first.gradients == ((0, 2, TENSOR),) and second.gradients, "later all of them differ"


def test_a_bit_that_the_sum_rounds_away_is_found_by_the_record(digits: Path, tmp_path: Path) -> None:
    fault = flipped_bit(rank=0, step=2, name=TENSOR, nth=1, bit=0)
    run = run_of(digits, tmp_path, fault=fault, max_steps=2, record=100)
    head, words, file = replayed(run, (2, 2), tmp_path, 2).lines()
    assert head == "step 2 differs; on 2 ranks, from last.2.pt of step 1"
    hidden = "rounding has hidden it from the sum"
    assert words == f"slice 1 of batch 0: the gradient of {TENSOR} differs; {hidden}"
    assert file == "last.pt of step 2: weights, averages and optimizer state are the same"


@pytest.mark.parametrize("flags", [{"sync_bn": True, "slices": 0}, {"sums": "float"}])
def test_without_slices_that_are_added_up_exactly_there_is_no_record(
    digits: Path, tmp_path: Path, flags: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="--record needs slices that are added up exactly"):
        run_of(digits, tmp_path, record=5, **flags)


def test_tensors_are_named_where_the_run_has_a_checkpoint_of_that_step(digits: Path, tmp_path: Path) -> None:
    fault = flipped_bit(rank=1, step=4, name=TENSOR)
    run = run_of(digits, tmp_path, fault=fault, max_steps=4)
    lines = replayed(run, (4, 4), tmp_path).lines()
    assert lines[0] == "step 4 differs; on 1 rank, from last.2.pt of step 3"
    assert lines[3:5] == [
        "which slice is not known: the step is not in a --record",
        "the run has a checkpoint of step 4: its tensors that differ are below",
    ]
    # batch norm's statistics are of the forward pass, which is before the fault
    assert lines[-1].startswith("last.pt of step 4: 3 of ")
    assert f"{TENSOR} of the weights; {TENSOR} of the averages; " in lines[-1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((2, 3), "step 2 is before the oldest checkpoint, epoch1.pt of step 3. replay from step 4 on"),
        ((5, 7), "steps.csv: has steps 1 to 6, and no step 7"),
        ((5, 4), "--steps 5:4. steps count from 1"),
    ],
)
def test_steps_that_cannot_be_made_again_are_refused(
    run: Path, tmp_path: Path, steps: tuple[int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        replayed(run, steps, tmp_path)
    assert not (tmp_path / "replays").exists()


def test_so_are_folders_that_are_no_runs(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"steps.csv: cannot be read \(No such file.*name a run folder"):
        replayed(tmp_path, (1, 1), tmp_path)
    (tmp_path / "steps.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="it is no table of steps"):
        replayed(tmp_path, (1, 1), tmp_path)
    with pytest.raises(UserError, match="is in the run's folder"):
        replayed(run, (5, 5), run)
    assert not (run / "replays").exists()


def test_images_that_are_gone_are_named_as_the_reason(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits.parent, tmp_path / "digits")
    run = run_of(tmp_path / "digits" / "data.yaml", tmp_path, ranks=1, max_steps=2)
    lost = break_images(tmp_path / "digits" / "data.yaml", tmp_path / "cache")
    said = "images of these steps cannot be read any more: .*step 2 differs, maybe only for that"
    with pytest.raises(UserError, match=said) as raised:
        replayed(run, (2, 2), tmp_path)
    assert any(str(path) in str(raised.value) for path in lost)
    lost[0].unlink()
    with pytest.raises(UserError, match=r"train: of 28 images \d are gone or changed, 0 are new since"):
        replayed(run, (2, 2), tmp_path)
