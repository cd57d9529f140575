"""Models without anchors over ranks, resumed, elastic, in micro-batches, scored and used."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from horovod_yolo.api import YOLO
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families import zoo
from horovod_yolo.losses.anchor_free import AnchorFreeCriterion
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.models.detector import Detector
from horovod_yolo.training.passes import Passes
from tests.helpers.runs import checkpoint, largest_loss_difference, weight_difference
from tests.helpers.tiny import tiny_batch
from tests.helpers.tiny_free import KINDS, criterion_of
from tests.helpers.world import run_world

from ..assembly.disturbed import job, lose_a_rank, require_resumed_as_whole
from ..assembly.test_run_over_ranks import config_of
from ..training.test_step import frozen_norm, make_stepper

pytestmark = pytest.mark.usefixtures("tiny")

CLASSES = 3


def run_config(data: Path, folder: Path, name: str, **changes: Any) -> TrainConfig:
    """A step for each batch, though the warm-up is short."""
    config = config_of(data, folder, **{"cfg": name, **changes})
    return replace(config, hyp=replace(config.hyp, nbs=config.batch_size))


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model's two epochs of three steps on one rank. The last batch has two images."""

    @functools.cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        run_world(1, job(run_config(digits, folder, name), folder / "run"))
        return folder / "run"

    return run


@pytest.mark.parametrize(("name", "size"), [("tiny8", 4), ("tiny11", 2), ("tiny26", 2), ("tiny26", 4)])
def test_any_number_of_ranks_trains_the_same(
    digits: Path, alone: Callable[[str], Path], tmp_path: Path, name: str, size: int
) -> None:
    """Some slices have no object, and some no image."""
    results = run_world(size, job(run_config(digits, tmp_path, name), tmp_path / "run"))
    assert largest_loss_difference(tmp_path / "run", alone(name)) < 1e-9
    assert weight_difference(tmp_path / "run", alone(name)) < 1e-9
    expected = checkpoint(alone(name))["metrics"]["val_loss"]
    assert [result["metrics"]["val_loss"] for result in results] == [pytest.approx(expected, rel=1e-9)] * size


@pytest.mark.parametrize("mistake", ["own sums", "clamped before the sum"])
def test_normalisers_of_a_rank_would_be_seen(
    digits: Path, alone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    """What the test above must not overlook."""
    whole, counts = AnchorFreeCriterion.__call__, AnchorFreeCriterion.counts
    if mistake == "own sums":
        monkeypatch.setattr(
            AnchorFreeCriterion,
            "__call__",
            lambda self, predictions, matches, totals: whole(
                self, predictions, matches, {**totals, self.normalisers[0]: counts(self, matches)[0]}
            ),
        )
    else:
        monkeypatch.setattr(AnchorFreeCriterion, "counts", lambda self, m: counts(self, m).clamp(min=1))
    run_world(4, job(run_config(digits, tmp_path, "tiny8"), tmp_path / "run"))
    assert largest_loss_difference(tmp_path / "run", alone("tiny8")) > 1e-3


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_whole_models_make_the_same_step_on_two_ranks(name: str) -> None:
    """In float64."""
    model = _model(name)
    batch = tiny_batch(2, 0, (64, 64))

    def step(comm: Communicator) -> Any:
        own = copy.deepcopy(model)
        criterion = criterion_of(own)
        stepper = make_stepper(own, criterion=criterion, comm=comm, sync_bn=True, lr=0.01)
        return stepper.step(iter([batch.split(comm.size)[comm.rank]]), [1.0]).result(), own.state_dict()

    expected, weights = step(LocalCommunicator())
    for found, theirs in run_world(2, step):
        assert found.losses == pytest.approx(expected.losses, rel=1e-9)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-8)
        for key, value in weights.items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-7, atol=1e-9, msg=key)


def _model(name: str, classes: int = CLASSES) -> Detector:
    torch.manual_seed(3)
    return zoo.build_model(name, classes).double()


@pytest.mark.parametrize(("name", "moment"), [("tiny8", 0), ("tiny26", 3)])
def test_a_resumed_run_ends_with_the_same_bits(digits: Path, tmp_path: Path, name: str, moment: int) -> None:
    """Also in the second epoch, which weighs the two heads otherwise."""
    config = run_config(digits, tmp_path, name, commit_every=1)
    require_resumed_as_whole(config, moment)


@pytest.mark.parametrize(("name", "then"), [("tiny26", 2), ("tiny8", 4)])
def test_survivors_go_on_from_the_last_commit(
    digits: Path, alone: Callable[[str], Path], tmp_path: Path, name: str, then: int
) -> None:
    """Of three ranks one is lost. Two have larger slices and take them in micro-batches, four have not."""
    config = run_config(digits, tmp_path, name, commit_every=2, elastic=True)
    lose_a_rank(config, tmp_path / "run", then)
    if then == 4:
        assert largest_loss_difference(tmp_path / "run", alone(name)) < 1e-9
        assert weight_difference(tmp_path / "run", alone(name)) < 1e-9
    else:  # batch norm has seen smaller batches
        assert 0 < largest_loss_difference(tmp_path / "run", alone(name)) < 1
        assert checkpoint(tmp_path / "run")["step"] == 6


@pytest.mark.parametrize("name", KINDS)
def test_accumulation_and_micro_batches_add_up(name: str) -> None:
    """Some micro-batches are empty. The norm is frozen, or it would see only one of them."""
    windows = [[tiny_batch(5, 0)], [tiny_batch(6, 1), tiny_batch(4, 2)]]
    models = [frozen_norm(_model(name)) for _ in range(2)]
    criteria = [criterion_of(model) for model in models]
    whole, split = (
        make_stepper(model, criterion=criterion) for model, criterion in zip(models, criteria, strict=True)
    )
    split.passes = Passes(7, 7)
    for window in windows:
        first, second = (s.step(iter(window), [1.0] * len(window)).result() for s in (whole, split))
        assert second.losses == pytest.approx(first.losses, rel=1e-9)
        assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-9)
    theirs = models[0].state_dict()
    for key, mine in models[1].state_dict().items():
        torch.testing.assert_close(mine, theirs[key], rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", KINDS)
def test_a_rank_without_images_has_a_gradient_for_all_that_is_trained(name: str) -> None:
    model = frozen_norm(_model(name))
    stepper = make_stepper(model, criterion=criterion_of(model))
    stepper._forward_backward(tiny_batch(0, 0))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and not p.grad.any() for p in trained)


def test_the_one_to_one_head_teaches_the_network_nothing() -> None:
    model = _model("tiny26")
    criterion: Any = criterion_of(model)
    criterion.part_of_many = 0.0
    batch = tiny_batch(3, 0)
    predictions = model(batch.images.double() / 255)
    matches = criterion.match(batch.targets, (32, 48), predictions)
    criterion(predictions, matches, by_name(criterion, count(criterion, [matches], 3))).total.backward()
    moved = {n.split(".")[1] for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"one2one_cv2", "one2one_cv3"}


def test_results_and_checkpoint_say_which_head_gave_the_numbers(
    digits: Path, alone: Callable[[str], Path]
) -> None:
    run = alone("tiny26")
    results = json.loads((run / "results.json").read_text())
    assert results["metrics"]["head"] == checkpoint(run)["metrics"]["head"] == "one2one"
    assert tuple(results["train"]) == ("box_loss", "cls_loss", "l1_loss")
    assert "head" not in json.loads((alone("tiny8") / "results.json").read_text())["metrics"]
    model = YOLO(run / "weights" / "best.pt")
    usual, other = (model.val(digits, device="cpu", workers=0, head=head) for head in ("", "one2many"))
    assert (usual["head"], other["head"]) == ("one2one", "one2many")
    assert usual["val_loss"] == other["val_loss"]
    image = np.zeros((96, 64, 3), np.uint8)
    (one,) = model.predict(image, conf_threshold=0, max_detections=7)
    (many,) = model.predict(image, conf_threshold=0, max_detections=7, head="one2many")
    assert len(one) == 7 and not torch.equal(one.boxes_xyxy, many.boxes_xyxy)


def test_a_run_may_be_scored_by_its_other_head(digits: Path, tmp_path: Path) -> None:
    config = run_config(digits, tmp_path, "tiny26", head="one2many", epochs=1)
    run_world(1, job(config, tmp_path / "run"))
    assert checkpoint(tmp_path / "run")["metrics"]["head"] == "one2many"
    model = YOLO(tmp_path / "run" / "weights" / "best.pt")
    assert model.val(digits, device="cpu", workers=0)["head"] == "one2many", "as trained"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny8", r"no head one2many\b.*it has one only"),
        ("tiny26", r"no head one2few\b.*one2one and one2many"),
    ],
)
def test_a_head_that_is_not_there(
    digits: Path, alone: Callable[[str], Path], tmp_path: Path, name: str, message: str
) -> None:
    head = "one2many" if name == "tiny8" else "one2few"
    with pytest.raises(UserError, match=message):
        run_world(1, job(run_config(digits, tmp_path, name, head=head), tmp_path / "run"))
    with pytest.raises(UserError, match=message):
        YOLO(alone(name) / "weights" / "best.pt").predict(np.zeros((8, 8, 3), np.uint8), head=head)
