"""The losses without anchors against loops over cells, sides and bins."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from horovod_yolo.core.boxes import complete_iou, xyxy_to_xywh
from horovod_yolo.core.cells import CellMaps
from horovod_yolo.core.types import Targets
from horovod_yolo.losses.anchor_free import (
    AnchorFreeCriterion,
    Gains,
    HeadMatches,
    TwoHeadCriterion,
    distribution_focal_loss,
)
from horovod_yolo.losses.criterion import by_name, count

STRIDES = (8, 16)
CLASSES = 3
SIZE = (64, 96)
GAINS = Gains(box=3.0, cls=0.7, dfl=2.0)


class OnlyStrides:
    """All that the loss asks of a head."""

    strides = STRIDES


def random_maps(images: int, bins: int, seed: int) -> CellMaps:
    """Sides of about one and a half cells."""
    rng = torch.Generator().manual_seed(seed)
    sides, logits = [], []
    for stride in STRIDES:
        shape = (SIZE[0] // stride, SIZE[1] // stride)
        raw = torch.randn(images, 4, bins, *shape, generator=rng, dtype=torch.float64)
        if bins > 1:
            raw -= (torch.arange(bins) - 1.5).square().view(bins, 1, 1)
        else:
            raw = raw * 0.5 + 1.5
        sides.append(raw.flatten(1, 2).requires_grad_())
        noise = torch.randn(images, CLASSES, *shape, generator=rng, dtype=torch.float64)
        logits.append((noise - 1).requires_grad_())
    return CellMaps(sides, logits)


def random_targets(images: int, seed: int) -> Targets:
    """Three an image; the last image has none."""
    rng = torch.Generator().manual_seed(seed)
    count_ = 3 * max(images - 1, 0)
    boxes = torch.cat(
        (torch.rand(count_, 2, generator=rng), torch.rand(count_, 2, generator=rng) / 2 + 0.1), 1
    )
    classes = torch.randint(CLASSES, (count_,), generator=rng)
    return Targets(torch.arange(count_) // 3, classes, boxes)


def criterion_of(bins: int) -> AnchorFreeCriterion | TwoHeadCriterion:
    return TwoHeadCriterion(GAINS, OnlyStrides()) if bins == 1 else AnchorFreeCriterion(GAINS, OnlyStrides())


def predictions_of(images: int, bins: int, seed: int = 0) -> dict[str, CellMaps]:
    heads = ("one2many", "one2one") if bins == 1 else ("one2many",)
    return {name: random_maps(images, bins, seed + i) for i, name in enumerate(heads)}


def terms_by_loops(maps: CellMaps, matched: HeadMatches) -> tuple[float, float, float]:
    """Box, cls and sides of one head, without gains and normaliser."""
    answers = {
        (int(b), int(c)): k
        for k, (b, c) in enumerate(zip(matched.answers.image, matched.answers.cell, strict=True))
    }
    box = cls = of_sides = 0.0
    first = 0
    for side_map, logit_map, stride in zip(*maps, STRIDES, strict=True):
        rows, columns = side_map.shape[2:]
        for image in range(len(side_map)):
            for row in range(rows):
                for column in range(columns):
                    k = answers.get((image, first + row * columns + column))
                    goal = [0.0] * CLASSES
                    if k is not None:
                        score = float(matched.answers.scores[k])
                        goal[int(matched.answers.classes[k])] = score
                        raw = side_map[image, :, row, column].detach().view(4, -1)
                        truth = (matched.answers.boxes_xyxy[k] / stride).tolist()
                        b, s = sides_by_loops(raw, (column + 0.5, row + 0.5), truth, stride)
                        box, of_sides = box + score * b, of_sides + score * s
                    for z, g in zip(logit_map[image, :, row, column].tolist(), goal, strict=True):
                        p = 1 / (1 + math.exp(-z))
                        cls -= g * math.log(p) + (1 - g) * math.log(1 - p)
        first += rows * columns
    return box, cls, of_sides


def sides_by_loops(
    raw: Tensor, point: tuple[float, float], truth: list[float], stride: int
) -> tuple[float, float]:
    """1 - CIoU, and the mean of the sides' loss, of one cell; all in cells."""
    (x, y), (left, top, right, bottom) = point, truth
    wanted, distances, losses = [x - left, y - top, right - x, bottom - y], [], []
    for side, goal in zip(raw.tolist(), wanted, strict=True):
        if len(side) == 1:
            distances.append(side[0])
            length = SIZE[1] if len(distances) % 2 else SIZE[0]
            losses.append(abs(side[0] - goal) * stride / length)
            continue
        total = sum(map(math.exp, side))
        p = [math.exp(z) / total for z in side]
        distances.append(sum(k * p_k for k, p_k in enumerate(p)))
        goal = min(max(goal, 0.0), len(side) - 1.01)
        low = int(goal)
        losses.append(-(low + 1 - goal) * math.log(p[low]) - (goal - low) * math.log(p[low + 1]))
    box = [x - distances[0], y - distances[1], x + distances[2], y + distances[3]]
    pair = (xyxy_to_xywh(torch.tensor([b], dtype=torch.float64)) for b in (box, truth))
    return 1 - float(complete_iou(*pair)), sum(losses) / 4


@pytest.mark.parametrize("bins", [1, 4, 16])
def test_terms_are_those_of_loops(bins: int) -> None:
    criterion, predictions, targets = criterion_of(bins), predictions_of(3, bins), random_targets(3, 1)
    matches = criterion.match(targets, SIZE, predictions)
    totals = by_name(criterion, count(criterion, [matches], 3))
    expected = {}
    for name, maps in predictions.items():
        scores = max(float(matches[name].answers.scores.sum()), 1.0)
        assert len(matches[name].answers) > 3
        loops = terms_by_loops(maps, matches[name])
        gains = (GAINS.box, GAINS.cls, GAINS.dfl)
        expected[name] = [gain * value / scores for gain, value in zip(gains, loops, strict=True)]
    loss = criterion(predictions, matches, totals)
    shown = expected["one2one" if bins == 1 else "one2many"]
    assert loss.terms.tolist() == pytest.approx(shown, rel=1e-9)
    total = sum(shown) if bins > 1 else 0.8 * sum(expected["one2many"]) + 0.2 * sum(shown)
    assert float(loss.total.detach()) == pytest.approx(3 * total, rel=1e-9)


@pytest.mark.parametrize("bins", [1, 16])
def test_gradients_are_those_of_differences(bins: int) -> None:
    """The assignment stays as it is."""
    criterion, predictions = criterion_of(bins), predictions_of(2, bins)
    matches = criterion.match(random_targets(2, 1), SIZE, predictions)
    totals = by_name(criterion, count(criterion, [matches], 2))
    leaves = [level for maps in predictions.values() for part in maps for level in part]
    criterion(predictions, matches, totals).total.backward()
    rng = torch.Generator().manual_seed(0)
    for leaf in leaves:
        assert leaf.grad is not None
        step = torch.randn(leaf.shape, generator=rng, dtype=torch.float64) * 1e-6
        slope = float((leaf.grad * step).sum())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * step)
                values.append(float(criterion(predictions, matches, totals).total))
                leaf.sub_(sign * step)
        # alpha of CIoU takes no gradient, so boxes are not quite the slope of the value.
        close = 1e-5 if leaf.shape[1] == CLASSES else 0.2
        assert (values[0] - values[1]) / 2 == pytest.approx(slope, rel=close, abs=1e-9)


@pytest.mark.parametrize("bins", [1, 16])
@pytest.mark.parametrize("images", [0, 2])
def test_without_targets_there_is_a_gradient_for_every_prediction(bins: int, images: int) -> None:
    criterion, predictions = criterion_of(bins), predictions_of(images, bins)
    matches = criterion.match(random_targets(0, 0), SIZE, predictions)
    assert criterion.counts(matches).tolist() == [0.0] * len(predictions)
    loss = criterion(predictions, matches, by_name(criterion, count(criterion, [matches], images)))
    loss.total.backward()
    assert loss.terms[[0, 2]].tolist() == [0, 0] and (loss.terms[1] > 0) == (images > 0)
    for maps in predictions.values():
        assert all(m.grad is not None and not m.grad.any() for m in maps.sides)
        assert all(m.grad is not None and bool(m.grad.any()) == (images > 0) for m in maps.logits)


def test_what_answers_depends_on_what_is_predicted() -> None:
    criterion, targets = criterion_of(16), random_targets(2, 4)
    assert criterion.matching_needs_predictions
    found = [criterion.match(targets, SIZE, predictions_of(2, 16, seed=seed)) for seed in (0, 1)]
    one, other = (matches["one2many"].answers for matches in found)
    assert one.cell.tolist() != other.cell.tolist()


def test_small_sums_are_clamped_once_over_all_ranks() -> None:
    criterion, predictions = criterion_of(16), predictions_of(2, 16)
    matches = criterion.match(random_targets(2, 1), SIZE, predictions)

    def total(scores: float) -> float:
        given = {criterion.normalisers[0]: torch.tensor(scores), "images": torch.tensor(2.0)}
        return float(criterion(predictions, matches, given).total.detach())

    assert total(0.3) == total(1.0) == pytest.approx(4 * total(4.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: Any) -> None:
    criterion = criterion_of(16)
    exact = predictions_of(2, 16)["one2many"]
    half, wide = (
        {"one2many": CellMaps(*([level.detach().to(dtype).to(kind) for level in part] for part in exact))}
        for kind in (dtype, torch.float32)
    )
    terms = []
    for predictions in (half, wide):
        matches = criterion.match(random_targets(2, 1), SIZE, predictions)
        totals = by_name(criterion, count(criterion, [matches], 2))
        terms.append(criterion(predictions, matches, totals).terms)
    assert terms[0].dtype == torch.float32 and torch.equal(*terms)


@pytest.mark.parametrize(("wanted", "bin_"), [(-3.0, 0), (2.0, 2), (40.0, 15)])
def test_distances_beyond_the_bins_count_as_the_last(wanted: float, bin_: int) -> None:
    sides = torch.zeros(1, 4, 16, dtype=torch.float64)
    sides[:, :, bin_] = 50.0
    loss = distribution_focal_loss(sides.flatten(1), torch.full((1, 4), wanted, dtype=torch.float64))
    assert float(loss.max()) < (0.6 if bin_ == 15 else 1e-9)


@pytest.mark.parametrize(("epochs", "expected"), [(1, [0.8]), (3, [0.8, 0.45, 0.1])])
def test_the_weight_moves_to_the_one_to_one_head(epochs: int, expected: list[float]) -> None:
    criterion = TwoHeadCriterion(GAINS, OnlyStrides())
    found = []
    for epoch in range(epochs):
        criterion.begin_epoch(epoch, epochs)
        found.append(criterion.part_of_many)
    assert found == pytest.approx(expected)
