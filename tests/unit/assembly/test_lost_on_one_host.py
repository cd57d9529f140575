"""An image that one host cannot read any more: all ranks do without it, and so does the run later."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.data.sampler import StepSampler
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.communicator import Communicator
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import run_world

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


def host(digits: Path, folder: Path) -> TrainConfig:
    """With files of its own, and no sample of several images."""
    shutil.copytree(digits.parent, folder)
    return settings(
        folder / "data.yaml",
        cfg=NAME,
        batch_size=BATCH,
        slices=2,
        hyp={"mosaic": 0.0},
        commit_every=1,
        noval=True,
    )


def states(
    comm: Communicator, config: TrainConfig, *, loses: int | None = None, state: Any = None
) -> list[dict[str, Any]]:
    """What a rank commits, where an image breaks on its host after all have looked at their files."""
    data = build_data(load_data_yaml(Path(config.data)), config, comm)
    recorder = Recorder()
    trainer = build_trainer(config, data, comm, [recorder], state)
    if loses is not None:
        data.train.image_path(loses).write_bytes(b"")
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
    alone = states(COMM, host(digits, tmp_path / "alone"), loses=lost)
    whole = states(COMM, hosts[0])
    for mine, theirs in zip(together, alone, strict=True):
        require_same_bits(mine, theirs, (*OF_A_RUN, "exchange", "lost_images"))
    with pytest.raises(AssertionError):
        require_same_bits(together[-1], whole[-1], ("model",))

    later = states(COMM, hosts[0], state=together[2])  # after the first epoch, where the image is there
    require_same_bits(later[-1], together[-1], (*OF_A_RUN, "lost_images"))
