"""Assignments, losses and gradients for given predictions are those that were measured elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from horovod_yolo.core.cells import CellMaps
from horovod_yolo.core.types import Targets
from horovod_yolo.families.anchor_free.family import AnchorFree
from horovod_yolo.losses.anchor_free import (
    AnchorFreeCriterion,
    Gains,
    HeadMatches,
    TwoHeadCriterion,
)
from horovod_yolo.losses.criterion import by_name, count
from tests.helpers.reference_fill import REFERENCES, needs_references

pytestmark = needs_references
CASES = ("none", "one", "several", "several_nc3", "crowd", "crowd_nc3", "wide_nc3")
Numbers = Mapping[str, NDArray[np.float32]]


class OnlyStrides:
    """All that the loss asks of a head."""

    strides = (8, 16, 32)


def numbers_of(kind: str, case: str) -> Numbers:
    with np.load(REFERENCES / "reference" / f"loss_{kind}_{case}.npz") as archive:
        return dict(archive)


def targets_of(numbers: Numbers) -> Targets:
    rows = torch.from_numpy(numbers["targets"]).float().view(-1, 6)
    return Targets(rows[:, 0].long(), rows[:, 1].long(), rows[:, 2:])


def maps_of(numbers: Numbers, prefix: str) -> tuple[CellMaps, Tensor, Tensor]:
    """The joined raw outputs as levels, and the leaves that gradients are asked of."""
    sides, logits = (torch.from_numpy(numbers[prefix + k]).requires_grad_() for k in ("boxes", "scores"))
    height, width = int(numbers["height"]), int(numbers["width"])
    shapes = [(height // stride, width // stride) for stride in OnlyStrides.strides]
    cells = [h * w for h, w in shapes]
    levels = [
        [part.unflatten(2, shape) for part, shape in zip(joined.split(cells, dim=2), shapes, strict=True)]
        for joined in (sides, logits)
    ]
    return CellMaps(*levels), sides, logits


def assert_assigned(matched: HeadMatches, numbers: Numbers, prefix: str, targets: Targets) -> None:
    answers = matched.answers
    scores = numbers[prefix + "target_score_of_assigned_class"]
    found = np.zeros_like(scores)
    found[answers.image, answers.cell] = answers.scores
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-7)
    assert float(answers.scores.sum()) == pytest.approx(
        float(numbers[prefix + "target_scores_sum"]), rel=1e-4, abs=1e-9
    )
    first = torch.tensor([int((targets.image < b).sum()) for b in range(2)])
    for image, cell, truth, box, kind in zip(
        answers.image.tolist(),
        answers.cell.tolist(),
        (answers.truth - first[answers.image]).tolist(),
        answers.boxes_xyxy,
        answers.classes.tolist(),
        strict=True,
    ):
        assert scores[image, cell] > 0 and numbers[prefix + "fg_mask"][image, cell]
        assert truth == numbers[prefix + "gt_index"][image, cell]
        assert kind == numbers[prefix + "target_class"][image, cell]
        np.testing.assert_allclose(box, numbers[prefix + "target_boxes_px"][image, cell], atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_of_one_head(case: str) -> None:
    numbers = numbers_of("v8", case)
    criterion, targets = AnchorFreeCriterion(Gains(), OnlyStrides()), targets_of(numbers)
    maps, sides, logits = maps_of(numbers, "")
    matches = criterion.match(targets, (int(numbers["height"]), int(numbers["width"])), {"one2many": maps})
    assert_assigned(matches["one2many"], numbers, "", targets)
    totals = by_name(criterion, count(criterion, [matches], 2))
    loss = criterion({"one2many": maps}, matches, totals)
    np.testing.assert_allclose(loss.terms, numbers["items"], rtol=1e-4, atol=1e-7)
    assert float(loss.total.detach()) == pytest.approx(float(numbers["total"]), rel=1e-4)
    loss.total.backward()
    assert_gradients(sides, logits, numbers, "")


def assert_gradients(sides: Tensor, logits: Tensor, numbers: Numbers, prefix: str, part: float = 1) -> None:
    for leaf, key in ((sides, "grad_boxes"), (logits, "grad_scores")):
        assert leaf.grad is not None
        expected = numbers[prefix + key]
        atol = 1e-4 * float(np.abs(expected).max()) + 1e-12
        np.testing.assert_allclose(leaf.grad / part, expected, rtol=1e-4, atol=atol * 0.1)


@pytest.mark.parametrize("case", CASES)
def test_of_two_heads(case: str) -> None:
    numbers = numbers_of("26", case)
    criterion, targets = TwoHeadCriterion(Gains(), OnlyStrides()), targets_of(numbers)
    size = (int(numbers["height"]), int(numbers["width"]))
    many, one = maps_of(numbers, "one2many_"), maps_of(numbers, "one2one_")
    predictions = {"one2many": many[0], "one2one": one[0]}
    matches = criterion.match(targets, size, predictions)
    for head in predictions:
        assert_assigned(matches[head], numbers, f"{head}_", targets)
    loss = criterion(predictions, matches, by_name(criterion, count(criterion, [matches], 2)))
    np.testing.assert_allclose(loss.terms, numbers["one2one_items"], rtol=1e-4, atol=1e-7)
    assert float(loss.total.detach()) == pytest.approx(float(numbers["total_epoch0"]), rel=1e-4)
    loss.total.backward()
    assert_gradients(many[1], many[2], numbers, "one2many_", 0.8)
    assert_gradients(one[1], one[2], numbers, "one2one_", 0.2)


def test_weights_of_the_epochs() -> None:
    criterion = TwoHeadCriterion(Gains(), OnlyStrides())
    found = []
    for epoch in range(100):
        criterion.begin_epoch(epoch, 100)
        found.append((criterion.part_of_many, 1 - criterion.part_of_many))
    np.testing.assert_allclose(found, numbers_of("26", "one")["weights_of_epoch"], rtol=0, atol=1e-6)


def test_every_model_has_the_strides_of_the_cases_or_is_the_tiny_one() -> None:
    odd = {name for name, spec in AnchorFree().models.items() if spec.strides != OnlyStrides.strides}
    assert odd == {"yolov3-tinyu"}
