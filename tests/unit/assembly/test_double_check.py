"""Slices that two ranks do: nothing changes by it, and a rank that computes wrongly is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly import slicing
from horovod_yolo.assembly.run import resumed_run
from horovod_yolo.assembly.train import train
from horovod_yolo.core.errors import FaultyRankError, UserError
from horovod_yolo.training.double_check import drawn
from horovod_yolo.training.step import Stepper
from tests.helpers.flipped_bits import flipped_bit
from tests.helpers.runs import checkpoint, same_bits, steps
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import run_world, world_outcomes

from .disturbed import OF_A_RUN, job
from .test_run import settings

pytestmark = pytest.mark.usefixtures("tiny")

TENSOR = "backbone.fine.conv.weight"
V = 4


def config_of(data: Path, folder: Path, **changes: Any) -> Any:
    """Two epochs of three steps; the last batch of each has two images, and so two slices are empty."""
    flags = {"cfg": NAME, "batch_size": 13, "slices": V, "noplots": True, "noval": True, "check_every": 1}
    return settings(data, cache_dir=str(folder / "cache"), **{**flags, **changes})


@pytest.fixture(scope="module")
def unchecked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unchecked")
    run_world(1, job(config_of(digits, folder, check_every=0), folder / "run"))
    return folder / "run"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ranks that did a slice again."""
    ranks: list[int] = []
    whole = Stepper._again

    def again(stepper: Stepper, *arguments: Any) -> Any:
        ranks.append(stepper._comm.rank)
        return whole(stepper, *arguments)

    monkeypatch.setattr(Stepper, "_again", again)
    return ranks


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_training_does_not_change(
    digits: Path, tmp_path: Path, unchecked: Path, counted: list[int], ranks: int
) -> None:
    every = 1 if ranks == 3 else 2
    run_world(ranks, job(config_of(digits, tmp_path, check_every=every), tmp_path / "run"))
    assert len(counted) == 6 // every and (ranks == 1 or len(set(counted)) > 1)
    assert steps(tmp_path / "run") == steps(unchecked)
    for part in OF_A_RUN:
        assert same_bits(checkpoint(tmp_path / "run")[part], checkpoint(unchecked)[part]), part


@pytest.mark.parametrize("cfg", [NAME, "tiny8", "tiny26"])
def test_in_passes_at_other_sizes_and_in_short_numbers_slices_come_again_too(
    digits: Path, tmp_path: Path, counted: list[int], cfg: str
) -> None:
    """Also those whose losses are divided after they went back."""
    flags = {"cfg": cfg, "micro_batch": 2, "multi_scale": True, "precision": "bf16", "epochs": 1}
    run_world(2, job(config_of(digits, tmp_path, **flags), tmp_path / "run"))
    assert len(counted) == len(steps(tmp_path / "run")) and checkpoint(tmp_path / "run")["passes"] == 2


def found(data: Path, folder: Path, ranks: int, fault: Any) -> FaultyRankError:
    """What all ranks of a run raise together."""
    with fault:
        outcomes = world_outcomes(ranks, job(config_of(data, folder), folder / "run"))
    assert [type(outcome) for outcome in outcomes] == [FaultyRankError] * ranks, outcomes
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert isinstance(outcomes[0], FaultyRankError)
    return outcomes[0]


def place(step: int, ranks: int) -> tuple[int, int, int]:
    """The slice that is looked at in a step of one batch, its rank, and its number among that rank's."""
    number = drawn(0, step, 1, V)[1]
    rank = next(r for r in range(ranks) if V * r // ranks <= number < V * (r + 1) // ranks)
    return number, rank, number - V * rank // ranks


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_one_flipped_bit_names_its_rank_and_the_run_goes_on_from_before(
    digits: Path, tmp_path: Path, unchecked: Path, ranks: int
) -> None:
    number, rank, nth = place(2, ranks)
    error = found(digits, tmp_path, ranks, flipped_bit(rank, 2, TENSOR, nth=nth, bit=0))
    why = {1: "done again, it has something else", 2: "done again, it has something else than before"}
    assert f"in step 2, slice {number} of batch 0, the gradient of {TENSOR} is not what" in str(error)
    assert str(error).startswith(f"rank {rank} (")
    assert why.get(ranks, "have the same, and it another") in str(error)
    assert str(error).endswith(f"go on with --resume {tmp_path / 'run'}")
    assert [guilty["rank"] for guilty in error.event["ranks"]] == [rank]
    assert checkpoint(tmp_path / "run")["step"] == 1, "the step was not made"
    run_world(2, lambda comm: train(resumed_run(str(tmp_path / "run"), {}, comm), comm))
    for part in OF_A_RUN:
        assert same_bits(checkpoint(tmp_path / "run")[part], checkpoint(unchecked)[part]), part
    assert json.loads((tmp_path / "run" / "results.json").read_text())["faults"] == [error.event]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_rank_that_is_always_wrong_is_named_by_a_third_or_both_are(
    digits: Path, tmp_path: Path, ranks: int
) -> None:
    error = found(digits, tmp_path, ranks, flipped_bit(1, 1, TENSOR, always=True))
    named = [guilty["rank"] for guilty in error.event["ranks"]]
    assert (sorted(named) if ranks == 2 else named) == ([0, 1] if ranks == 2 else [1])
    if ranks == 2:
        assert "each repeats what it had, and there is no third rank of the same kind" in str(error)


def test_ranks_of_other_kinds_are_not_paired(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    kinds = iter("abca" * 3)
    monkeypatch.setattr(slicing, "device_kind", lambda *_, **__: next(kinds))
    run_world(3, job(config_of(digits, tmp_path), tmp_path / "run"))
    assert counted == [place(step, 3)[1] for step in range(1, 7)], "each slice by its own rank"


def test_it_needs_slices(digits: Path, tmp_path: Path) -> None:
    for flags, message in (
        ({"slices": 0, "sync_bn": True}, "--check-every needs slices that are added up exactly"),
        ({"sums": "float"}, "there are none with --sums float"),
        ({"slices": 1}, "--check-every with one slice. use --slices 2 or more"),
    ):
        with pytest.raises(UserError, match=message):
            run_world(1, job(config_of(digits, tmp_path, **flags), tmp_path / message[-5:]))
