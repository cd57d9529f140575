"""A family that the engine has never heard of trains, validates, resumes, is elastic, and knows no ranks."""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from horovod_yolo.api import YOLO
from horovod_yolo.assembly.run import resumed_run
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.types import Targets
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families.zoo import build_model
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.models.detector import Detector, published_names
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.training.passes import Passes
from tests.helpers.runs import checkpoint, largest_loss_difference, steps, weight_difference
from tests.helpers.tiny import tiny_batch
from tests.helpers.toy_family import NAME, ToyCriterion, ToyHead, add_toy
from tests.helpers.world import run_world

from ..assembly.disturbed import job, lose_a_rank, require_resumed_as_whole
from ..assembly.test_run_over_ranks import config_of
from ..training.test_step import frozen_norm, make_stepper, size_of

CLASSES = 3
TERMS = ("box", "cls", "one_box", "one_cls")


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        add_toy(patch)
        yield


def toy_config(data: Path, folder: Path, **changes: Any) -> TrainConfig:
    return config_of(data, folder, **{"cfg": NAME, **changes})


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of three steps on one rank, with all that is written."""
    folder = tmp_path_factory.mktemp("toy")
    run_world(1, job(toy_config(digits, folder, noplots=False), folder / "run"))
    return folder / "run"


def test_its_own_terms_are_in_every_table(alone: Path) -> None:
    columns = list(steps(alone)[0])
    assert columns[4:8] == [f"{term}_loss" for term in TERMS]
    with (alone / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for part in ("train", "val"):
        assert [name for name in rows[0] if name.startswith(f"{part}/")] == [
            f"{part}/{t}_loss" for t in TERMS
        ]
        assert all(0 < float(row[f"{part}/{term}_loss"]) < 1e4 for row in rows for term in TERMS)
    state = checkpoint(alone)
    assert tuple(state["metrics"]["val_loss"]) == tuple(state["progress"]["last_losses"]) == TERMS
    page = (alone / "report.html").read_text()
    assert "one box loss" in page and "obj loss" not in page
    assert (alone / "results.png").exists() and (alone / "val_predictions.png").exists()


def test_the_hook_fits_a_new_model_to_the_data_and_a_resumed_one_keeps_it(alone: Path) -> None:
    assert float(checkpoint(alone)["model"]["head.side"]) not in (0.0, 1.0)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_any_number_of_ranks_trains_the_same(digits: Path, alone: Path, tmp_path: Path, size: int) -> None:
    """The normalisers are sums of scores, below 1 on some ranks: clamped before the sum they would differ."""
    results = run_world(size, job(toy_config(digits, tmp_path), tmp_path / "run"))
    assert largest_loss_difference(tmp_path / "run", alone) < 1e-9
    assert weight_difference(tmp_path / "run", alone) < 1e-9
    expected = checkpoint(alone)["metrics"]["val_loss"]
    assert [result["metrics"]["val_loss"] for result in results] == [pytest.approx(expected, rel=1e-9)] * size


def test_each_ranks_own_normalisers_would_be_seen(
    digits: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above must not overlook."""
    whole = ToyCriterion.__call__

    def own(self: ToyCriterion, predictions: Any, matches: Any, totals: Any) -> Any:
        return whole(
            self,
            predictions,
            matches,
            {**by_name(self, count(self, [matches], 0)), "images": totals["images"]},
        )

    monkeypatch.setattr(ToyCriterion, "__call__", own)
    run_world(2, job(toy_config(digits, tmp_path), tmp_path / "run"))
    assert largest_loss_difference(tmp_path / "run", alone) > 1e-3


@pytest.mark.parametrize("moment", [0, 2, 4])
def test_a_resumed_run_ends_with_the_same_bits(digits: Path, tmp_path: Path, moment: int) -> None:
    """Also in the second epoch, whose loss weighs the branches otherwise."""
    config = toy_config(digits, tmp_path, commit_every=1)
    require_resumed_as_whole(config, moment)


@pytest.mark.parametrize("then", [2, 4])
def test_survivors_go_on_from_the_last_commit(digits: Path, alone: Path, tmp_path: Path, then: int) -> None:
    """Of three ranks one is lost. Two have larger slices and take them in micro-batches, four have not."""
    config = toy_config(digits, tmp_path, commit_every=2, elastic=True)
    lose_a_rank(config, tmp_path / "run", then)
    if then == 4:
        assert largest_loss_difference(tmp_path / "run", alone) < 1e-9
        assert weight_difference(tmp_path / "run", alone) < 1e-9
    else:  # batch norm has seen smaller batches
        assert 0 < largest_loss_difference(tmp_path / "run", alone) < 1
        assert checkpoint(tmp_path / "run")["step"] == 6


def make_toy() -> Detector:
    torch.manual_seed(3)
    return build_model(NAME, CLASSES).double()


def criterion_of(model: Detector) -> ToyCriterion:
    assert isinstance(model.head, ToyHead)
    return ToyCriterion(model.head)


@pytest.mark.parametrize("micro_batches", [2, 3, 7])
def test_micro_batches_add_up_though_matching_needs_all_predictions_first(micro_batches: int) -> None:
    """Some of them are empty. The norm is frozen, or it would see only one of them."""
    windows = [[tiny_batch(5, 0)], [tiny_batch(6, 1), tiny_batch(4, 2)]]
    whole, split = frozen_norm(make_toy()), frozen_norm(make_toy())
    steppers = [make_stepper(model, criterion=criterion_of(model)) for model in (whole, split)]
    steppers[1].passes = Passes(7, micro_batches)
    for window in windows:
        first, second = (s.step(iter(window), [1.0] * len(window)).result() for s in steppers)
        assert second.losses == pytest.approx(first.losses, rel=1e-9)
        assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-9)
    for (name, mine), theirs in zip(split.state_dict().items(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_the_pass_that_counts_leaves_no_trace_in_the_running_statistics() -> None:
    model, plain = make_toy(), make_toy()
    stepper = make_stepper(model, criterion=criterion_of(model), lr=0.0)
    stepper.passes = Passes(8, 2)
    batch = tiny_batch(4, 0)
    stepper.step(iter([batch]), [1.0]).result()
    seen = []
    for half in batch.split(2):
        one = copy.deepcopy(plain).train()
        one(half.images.double() / 255)
        seen.append(dict(one.named_buffers()))
    for name, buffer in model.named_buffers():
        mean = (seen[0][name] + seen[1][name]) / 2  # of one batch, whose halves have as many images
        torch.testing.assert_close(buffer, mean.to(buffer), rtol=1e-12, atol=1e-12, msg=name)


def test_one_branch_teaches_the_network_nothing() -> None:
    model = make_toy()
    criterion, batch = criterion_of(model), tiny_batch(3, 0)
    criterion.share_of_many = 0.0
    predictions = model(batch.images.double() / 255)
    with torch.no_grad():
        matches = criterion.match(batch.targets, size_of(batch), predictions)
    assert all(len(matches[name].cell) > 0 for name in ("many", "one"))
    loss = criterion(predictions, matches, by_name(criterion, count(criterion, [matches], 3)))
    loss.total.backward()
    moved = {
        n.split(".")[0] + "." + n.split(".")[1]
        for n, p in model.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert moved == {"head.one"}


def test_a_rank_without_images_has_a_gradient_for_everything() -> None:
    model = frozen_norm(make_toy())
    stepper = make_stepper(model, criterion=criterion_of(model))
    stepper._forward_backward(tiny_batch(0, 0))
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_its_head_suppresses_in_its_own_way() -> None:
    model = make_toy().eval()
    predictions = model(tiny_batch(2, 0).images.double() / 255)
    for found in model.detect(predictions, Thresholds(confidence=0.01, iou=0.0, most=40)):
        assert len(found) == 40, "boxes that overlap stay"
        assert bool((found.scores.diff() <= 0).all())


def test_published_names_follow_from_its_rows() -> None:
    model = make_toy()
    names = published_names(model)
    assert names[0] == "model.0.conv.weight" and names[-1] == "model.2.one.1.bias"
    assert len(set(names)) == len(model.state_dict())


def test_its_weights_are_scored_and_used(alone: Path, digits: Path) -> None:
    model = YOLO(alone / "weights" / "best.pt")
    assert model.name == NAME
    assert tuple(model.val(digits, device="cpu", workers=0)["val_loss"]) == TERMS
    (found,) = model.predict(np.zeros((96, 64, 3), np.uint8), conf_threshold=1e-6, max_detections=7)
    assert len(found) == 7


def test_its_checkpoint_leads_back_to_it(alone: Path) -> None:
    run = resumed_run(str(alone), {"imgsz": 50}, LocalCommunicator())
    assert run.config.cfg == NAME and run.config.imgsz == 64, "rounded to its coarsest stride"


def test_targets_on_no_cell_are_no_answers() -> None:
    """A box smaller than a cell may hold no point."""
    model = make_toy()
    criterion = criterion_of(model)
    batch = tiny_batch(1, 0)
    speck = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0.5, 0.5, 1e-4, 1e-4]]))
    matches = criterion.match(speck, size_of(batch), model(batch.images.double() / 255))
    assert [len(matches[name].cell) for name in ("many", "one")] == [0, 0]
    assert criterion.counts(matches).tolist() == [0.0, 0.0]
