"""An image that one host cannot read any more: all ranks do without it, and so does the run later."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.data import substitutes
from horovod_yolo.data.sampler import StepSampler
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.communicator import Communicator
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import run_world, world_outcomes

from .disturbed import OF_A_RUN, require_same_bits
from .test_run import COMM, Recorder, settings

pytestmark = pytest.mark.usefixtures("tiny")

IMAGES, BATCH = 28, 14


def position_met_by_rank_1_and_then_by_rank_0() -> int:
    """The first image that the second of two ranks has in the first epoch, and the first one in the next."""
    plans = [StepSampler(IMAGES, BATCH, rank, 2, seed=0, shuffle=True, shape=(64, 64)) for rank in (0, 1)]
    mine, theirs = (
        {key.index for batch in (0, 1) for key in plan.rank_keys(epoch, batch)}
        for plan, epoch in zip(plans, (1, 0), strict=True)
    )
    return min(mine & theirs)


def host(digits: Path, folder: Path, **changes: Any) -> TrainConfig:
    """With files of its own, and no sample of several images."""
    shutil.copytree(digits.parent, folder)
    flags = {"batch_size": BATCH, "slices": 2, "hyp": {"mosaic": 0.0}, "commit_every": 1, "noval": True}
    return settings(folder / "data.yaml", cfg=NAME, **{**flags, **changes})


def states(
    comm: Communicator,
    config: TrainConfig,
    *,
    loses: int | None = None,
    split: str = "train",
    state: Any = None,
) -> list[dict[str, Any]]:
    """What a rank commits, where an image breaks on its host after all have looked at their files."""
    data = build_data(load_data_yaml(Path(config.data)), config, comm)
    recorder = Recorder()
    trainer = build_trainer(config, data, comm, [recorder], state)
    if loses is not None:
        getattr(data, split).image_path(loses).write_bytes(b"")
    trainer.fit()
    trainer.close()
    return recorder.states


def test_all_do_without_it_from_then_on(digits: Path, tmp_path: Path) -> None:
    lost = position_met_by_rank_1_and_then_by_rank_0()
    hosts = [host(digits, tmp_path / f"host{n}") for n in (0, 1)]
    together, others = run_world(
        2, lambda comm: states(comm, hosts[comm.rank], loses=lost if comm.rank else None)
    )
    assert [one["lost_images"] for one in together] == [one["lost_images"] for one in others]
    (since,) = together[-1]["lost_images"].values()
    assert together[-1]["lost_images"].keys() == {lost} and since in (1, 2)
    said = f"images were lost while it ran, from step {since} on"
    assert together[-1]["arithmetic"]["unlike"] == others[-1]["arithmetic"]["unlike"] == said
    alone = states(COMM, host(digits, tmp_path / "alone"), loses=lost)
    whole = states(COMM, hosts[0])
    for mine, theirs in zip(together, alone, strict=True):
        require_same_bits(mine, theirs, (*OF_A_RUN, "exchange", "lost_images"))
    with pytest.raises(AssertionError):
        require_same_bits(together[-1], whole[-1], ("model",))

    later = states(COMM, hosts[0], state=together[2])  # after the first epoch, where the image is there
    require_same_bits(later[-1], together[-1], (*OF_A_RUN, "lost_images"))


def test_a_data_set_that_vanishes_ends_all_ranks_also_before_a_tenth_is_asked_for(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other image takes the place of those that are known to be lost; it is not tried for ever."""
    monkeypatch.setattr(substitutes, "MOST_IN_A_ROW", 2)
    config = host(digits, tmp_path / "host", batch_size=2)

    def job(comm: Communicator) -> None:
        data = build_data(load_data_yaml(Path(config.data)), config, comm)
        trainer = build_trainer(config, data, comm, [], None)
        for position in range(IMAGES):
            data.train.image_path(position).unlink(missing_ok=True)
        try:
            trainer.fit()
        finally:
            trainer.close()

    outcomes = world_outcomes(2, job)
    assert [type(outcome) for outcome in outcomes] == [UserError] * 2, outcomes
    assert f"{IMAGES} of {IMAGES} images cannot be read any more" in str(outcomes[0])


LOST_IN_VALIDATION = 3  # in the second of three slices, which rank 1 of two and of three has
OF_VALIDATION = (*OF_A_RUN, "early_stopping", "lost_in_validation")


@pytest.fixture(scope="module")
def lost_by_one_rank(
    tiny: None, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What a run of one rank commits that has lost an image of validation."""
    config = host(digits, tmp_path_factory.mktemp("one") / "host", slices=3, noval=False)
    return states(COMM, config, loses=LOST_IN_VALIDATION, split="val")


@pytest.mark.parametrize("ranks", [2, 3])
def test_metrics_do_not_depend_on_who_has_an_image_that_one_rank_has_lost(
    digits: Path, tmp_path: Path, lost_by_one_rank: list[dict[str, Any]], ranks: int
) -> None:
    """Neither in the pass that misses it nor in one of ranks that can read it, to whom its slice goes."""
    hosts = [host(digits, tmp_path / f"host{n}", slices=3, noval=False) for n in range(ranks)]
    everyones = run_world(
        ranks,
        lambda comm: states(
            comm, hosts[comm.rank], loses=LOST_IN_VALIDATION if comm.rank == 1 else None, split="val"
        ),
    )
    for run in everyones:
        for mine, theirs in zip(run, lost_by_one_rank, strict=True):
            require_same_bits(mine, theirs, OF_VALIDATION)
            assert mine["arithmetic"]["unlike"] == theirs["arithmetic"]["unlike"]
    last = everyones[0][-1]
    assert last["lost_in_validation"] == {LOST_IN_VALIDATION: 2}
    assert last["arithmetic"]["unlike"] == "validation images were lost while it ran, after step 2"

    there = host(digits, tmp_path / "there", slices=3, noval=False)
    later = states(COMM, there, state=everyones[0][2])  # after the first epoch
    require_same_bits(later[-1], last, OF_VALIDATION)
    whole = states(COMM, there, state={**everyones[0][2], "lost_in_validation": {}})
    assert whole[-1]["metrics"] != last["metrics"], "one image less tells"
