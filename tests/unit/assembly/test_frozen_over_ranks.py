"""Whole runs with frozen layers over ranks: what is frozen stays to the bit, all else is as on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from horovod_yolo.assembly.run import Run, new_run
from horovod_yolo.assembly.train import train
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.runs import checkpoint, largest_loss_difference, same_bits, weight_difference
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import WorldCommunicator, run_world

from .disturbed import job, lose_a_rank, require_stopped_as_whole
from .test_run_over_ranks import config_of

pytestmark = pytest.mark.usefixtures("tiny")

MODELS = (NAME, "tiny26")


def test_to_freeze_what_is_random_is_worth_a_line(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, by rank 0, and not where there are weights."""
    line = "--freeze without --weights: what is frozen stays as random as it begins"
    for flags, lines in (({"freeze": [3]}, [line]), ({}, []), ({"freeze": [3], "weights": "w.pt"}, [])):
        caplog.clear()
        config = config_of(digits, tmp_path, cfg="yolov5n", project=str(tmp_path / "runs"), **flags)
        run_world(2, lambda comm, config=config: new_run(config, comm))  # type: ignore[misc]
        assert caplog.messages == lines


@pytest.fixture(scope="module")
def starts(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained weights, whose running statistics are those of real images."""
    found = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp(f"start-{name}")
        run_world(1, job(config_of(digits, folder, cfg=name, epochs=1, precision="fp32"), folder / "run"))
        found[name] = folder / "run" / "weights" / "best.pt"
    return found


def frozen_config(data: Path, folder: Path, start: Path, name: str = NAME, **changes: Any) -> TrainConfig:
    given = {"cfg": name, "weights": str(start), "freeze": ["model.0"], **changes}
    return config_of(data, folder, **given)


def backbone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.double() for key, tensor in weights.items() if key.startswith("backbone.")}


def require_frozen(run: Path, start: Path) -> None:
    """The backbone is that of the weights to the bit, in the model and in its average; the rest is not."""
    given = torch.load(start, weights_only=True)["ema"]["weights"]
    state = checkpoint(run)
    for weights in (state["model"], state["ema"]["weights"]):
        assert same_bits(backbone(weights), backbone(given)), "to the bit"
        moved = {key.split(".")[0] for key in given if not same_bits(weights[key].to(given[key]), given[key])}
        assert moved == {"neck", "head"}
        assert not same_bits(weights["neck.coarse.bn.running_mean"], given["neck.coarse.bn.running_mean"])
    assert len(backbone(given)) == 6


@pytest.fixture(scope="module")
def alone(digits: Path, starts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Six steps of one rank."""
    found = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp(f"alone-{name}")
        run_world(1, job(frozen_config(digits, folder, starts[name], name), folder / "run"))
        found[name] = folder / "run"
        require_frozen(folder / "run", starts[name])
    return found


@pytest.mark.parametrize(("name", "size"), [(NAME, 2), (NAME, 4), ("tiny26", 4)])
def test_any_number_of_ranks_trains_the_same(
    digits: Path, starts: dict[str, Path], alone: dict[str, Path], tmp_path: Path, name: str, size: int
) -> None:
    """With synchronised batch norm. Two of four ranks have an empty slice."""

    def listening(comm: WorldCommunicator) -> list[str]:
        train(Run(config, tmp_path / "run", None), comm)
        words = [f"{call.name} {' '.join(call.forms)}" for call in comm.calls]
        return [word for call in words for word in call.split() if "backbone" in word or "neck" in word]

    config = frozen_config(digits, tmp_path, starts[name], name)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    asked = run_world(size, listening)
    require_frozen(tmp_path / "run", starts[name])
    assert largest_loss_difference(tmp_path / "run", alone[name]) < 1e-9
    assert weight_difference(tmp_path / "run", alone[name]) < 1e-9
    about = {word for word in asked[0] if word.startswith("backbone")}
    assert about == set(backbone(checkpoint(alone[name])["model"])), "in the broadcast of all weights only"
    assert {"bn.neck.coarse.bn", "neck.coarse.conv.weight"} <= set(asked[0])


def test_the_optimizer_does_not_know_what_is_frozen(alone: dict[str, Path]) -> None:
    state = checkpoint(alone[NAME])
    trained = [k for k in state["model"] if k.split(".")[-1] in ("weight", "bias") and "backbone" not in k]
    assert len(state["optimizer"]["state"]) == len(trained)


@pytest.mark.parametrize("optimizer", ["AdamW", "MuSGD"])
def test_other_optimizers_do_not_decay_it_either(
    digits: Path, starts: dict[str, Path], tmp_path: Path, optimizer: str
) -> None:
    config = frozen_config(digits, tmp_path, starts[NAME], optimizer=optimizer, epochs=1)
    run_world(2, job(config, tmp_path / "run"))
    require_frozen(tmp_path / "run", starts[NAME])


def test_stopped_and_resumed_ends_with_the_bits_of_the_undisturbed_run(
    digits: Path, starts: dict[str, Path], tmp_path: Path
) -> None:
    """Without synchronised batch norm: a mean over three ranks must change no bit of what is frozen."""
    config = frozen_config(digits, tmp_path, starts[NAME], precision="fp32", sync_bn=False)
    require_stopped_as_whole(config, tmp_path)
    require_frozen(tmp_path / "whole", starts[NAME])


def test_an_elastic_world_that_loses_a_rank(
    digits: Path, starts: dict[str, Path], alone: dict[str, Path], tmp_path: Path
) -> None:
    config = frozen_config(digits, tmp_path, starts[NAME], commit_every=2, elastic=True)
    lose_a_rank(config, tmp_path / "run", then=4)
    require_frozen(tmp_path / "run", starts[NAME])
    assert largest_loss_difference(tmp_path / "run", alone[NAME]) < 1e-9
    assert weight_difference(tmp_path / "run", alone[NAME]) < 1e-9


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ([25], "--freeze leaves nothing to train"),
        ([0, 25], "--freeze 25: no such layer.*yolov5n has layers 0 to 24"),
        (["stem"], "--freeze stem: no such name"),
    ],
)
def test_mistakes_end_a_job_before_it_makes_a_folder(
    digits: Path, tmp_path: Path, freeze: list[Any], message: str
) -> None:
    config = config_of(digits, tmp_path, cfg="yolov5n", freeze=freeze, project=str(tmp_path / "runs"))
    with pytest.raises(UserError, match=message):
        new_run(config, LocalCommunicator())
    assert not (tmp_path / "runs").exists()
