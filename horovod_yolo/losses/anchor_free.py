"""Losses of predictions without anchors: of YOLOv8 and YOLO11, and of YOLO26's two heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from horovod_yolo.core.boxes import complete_iou, xyxy_to_xywh
from horovod_yolo.core.cells import CellMaps, Cells, boxes_around, cells_of, distances_of, distances_to
from horovod_yolo.core.transfer import numbers
from horovod_yolo.core.types import Targets
from horovod_yolo.losses.candidates import Candidates, Level, candidates_of
from horovod_yolo.losses.criterion import IMAGES, Criterion, Loss
from horovod_yolo.losses.task_aligned import Answers, AssignmentRules, assign_aligned


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Weights of the terms."""

    box: float = 7.5
    cls: float = 0.5
    dfl: float = 1.5  # also of what stands in its place where sides have no distribution


class AnchorFreeHead(Protocol):
    """What the loss must know of the head."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the L levels, finest first."""


@dataclass(frozen=True)
class HeadMatches:
    """What the predictions of one head for some images answer for."""

    answers: Answers
    size: tuple[int, int]  # (H, W) of the input


Predictions = Mapping[str, CellMaps]  # by the head's name
Matches = dict[str, HeadMatches]
ONE_TO_MANY = "one2many"
ONE_TO_ONE = "one2one"
MANY_AT_FIRST, MANY_IN_THE_END = 0.8, 0.1  # the one-to-many head's part in the loss of two


class _AnchorFreeCriterion(Criterion[Predictions, Matches]):
    """What the losses of one and of two heads share."""

    matching_needs_predictions: ClassVar[bool] = True
    divides_late: ClassVar[bool] = True

    def __init__(
        self, gains: Gains, head: AnchorFreeHead, most_cells: Mapping[str, tuple[int, int | None]]
    ) -> None:
        """``most_cells`` of a box, by head: before and after cells are shared out."""
        self.gains = gains
        self._head = head
        self.rules = {
            name: AssignmentRules(most=most, most_after=after) for name, (most, after) in most_cells.items()
        }

    @property
    def normalisers(self) -> tuple[str, ...]:
        """The sum of each head's target scores."""
        return tuple(map(_normaliser, self.rules))

    def match(self, targets: Targets, size: tuple[int, int], predictions: Predictions | None) -> Matches:
        """See `Criterion`."""
        assert predictions is not None
        candidates = self._candidates(targets, size, predictions[next(iter(self.rules))])
        return {
            name: HeadMatches(self._answers(candidates, predictions[name], rules), size)
            for name, rules in self.rules.items()
        }

    def _candidates(self, targets: Targets, size: tuple[int, int], maps: CellMaps) -> Candidates:
        """The same for all heads: their maps have the same cells."""
        strides = self._head.strides
        shapes = [one.shape[2:] for one in maps.sides]
        levels = [Level(h, w, stride) for (h, w), stride in zip(shapes, strides, strict=True)]
        given, device = maps.sides[0].dtype, maps.sides[0].device
        kind = torch.float64 if given == torch.float64 else torch.float32
        # Sides below the second stride are lengthened to it.
        return candidates_of(targets, size, levels, strides[1], kind, device)

    def _answers(self, candidates: Candidates, maps: CellMaps, rules: AssignmentRules) -> Answers:
        sides, logits = (one.detach() for one in maps.joined())
        cells = cells_of(maps, self._head.strides)
        boxes_xyxy = boxes_around(cells.points, distances_of(sides)) * cells.strides
        return assign_aligned(candidates, boxes_xyxy, logits, rules)

    def counts(self, matches: Matches) -> Tensor:
        """(1 or 2,) float64 sums of target scores."""
        return torch.stack([matches[name].answers.scores.double().sum() for name in self.rules])

    def _sums(self, name: str, predictions: Predictions, matches: Matches) -> Tensor:
        """(3,) box, cls and sides of one head, with gains, not divided."""
        maps, found = predictions[name], matches[name]
        sums = head_sums(maps, found.answers, cells_of(maps, self._head.strides), found.size)
        return sums * numbers([self.gains.box, self.gains.cls, self.gains.dfl], sums)

    def _terms(
        self, name: str, predictions: Predictions, matches: Matches, totals: Mapping[str, Tensor]
    ) -> Tensor:
        """The same, divided."""
        sums = self._sums(name, predictions, matches)
        return sums / totals[_normaliser(name)].clamp(min=1).to(sums)


class AnchorFreeCriterion(_AnchorFreeCriterion):
    """Loss of one head whose sides are distributions (YOLOv8, YOLO11).

    The total is ``images * (box + cls + dfl)``. Each is a sum divided by the sum of all target scores, or by
    1 if that is less. The first and the last weigh a cell by its target score:

    - box: 1 - CIoU;
    - cls: cross-entropy over all cells and classes with the target score;
    - dfl: distribution focal loss (Li et al., "Generalized focal loss", 2020, equation 6), mean of the sides.
    """

    terms: ClassVar[tuple[str, ...]] = ("box", "cls", "dfl")

    def __init__(self, gains: Gains, head: AnchorFreeHead) -> None:
        super().__init__(gains, head, {ONE_TO_MANY: (10, None)})

    def __call__(self, predictions: Predictions, matches: Matches, totals: Mapping[str, Tensor]) -> Loss:
        """See `Criterion`."""
        terms = self._terms(ONE_TO_MANY, predictions, matches, totals)
        return Loss(terms.sum() * _images(totals, terms), terms.detach())

    def undivided(self, predictions: Predictions, matches: Matches) -> Mapping[str, Loss]:
        """See `Criterion`."""
        sums = self._sums(ONE_TO_MANY, predictions, matches)
        return {_normaliser(ONE_TO_MANY): Loss(sums.sum(), sums.detach())}


class TwoHeadCriterion(_AnchorFreeCriterion):
    """Loss of a one-to-many and a one-to-one head whose sides are numbers (YOLO26).

    The total is ``images * (m * many + (1 - m) * one)`` of the two heads' box + cls + l1, where m falls from
    0.8 in the first epoch to 0.1 in the last. l1 is the mean over the sides of the error as a share of the
    input's width or height; the others are those of `AnchorFreeCriterion`. The one-to-one head's are shown.
    """

    terms: ClassVar[tuple[str, ...]] = ("box", "cls", "l1")

    def __init__(self, gains: Gains, head: AnchorFreeHead) -> None:
        super().__init__(gains, head, {ONE_TO_MANY: (10, None), ONE_TO_ONE: (7, 1)})
        self.part_of_many = MANY_AT_FIRST

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Shift the weight from the one-to-many to the one-to-one head."""
        left = max(1 - epoch / max(epochs - 1, 1), 0.0)
        self.part_of_many = left * (MANY_AT_FIRST - MANY_IN_THE_END) + MANY_IN_THE_END

    def __call__(self, predictions: Predictions, matches: Matches, totals: Mapping[str, Tensor]) -> Loss:
        """See `Criterion`."""
        many = self._terms(ONE_TO_MANY, predictions, matches, totals)
        one = self._terms(ONE_TO_ONE, predictions, matches, totals)
        total = self.part_of_many * many.sum() + (1 - self.part_of_many) * one.sum()
        return Loss(total * _images(totals, one), one.detach())

    def undivided(self, predictions: Predictions, matches: Matches) -> Mapping[str, Loss]:
        """See `Criterion`. The one-to-one head sends no gradient into what it shares with the other."""
        many, one = (self._sums(name, predictions, matches) for name in (ONE_TO_MANY, ONE_TO_ONE))
        return {
            _normaliser(ONE_TO_MANY): Loss(self.part_of_many * many.sum(), torch.zeros_like(many.detach())),
            _normaliser(ONE_TO_ONE): Loss((1 - self.part_of_many) * one.sum(), one.detach()),
        }


def head_sums(maps: CellMaps, found: Answers, cells: Cells, size: tuple[int, int]) -> Tensor:
    """(3,) sums of box, cls and sides over the cells of a rank, without gains. Differentiable."""
    sides, logits = maps.joined()
    goal = torch.zeros_like(logits)
    _, count, classes = logits.shape
    place = (found.image * count + found.cell) * classes + found.classes
    goal.view(-1).scatter_reduce_(0, place, found.scores, "amax")  # which those of 0 leave alone
    entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="sum")

    sides, points, strides = (
        sides[found.image, found.cell],
        cells.points[found.cell],
        cells.strides[found.cell],
    )
    distances = distances_of(sides)
    wanted_xyxy = found.boxes_xyxy / strides
    predicted_xyxy = boxes_around(points, distances)
    box = 1 - complete_iou(xyxy_to_xywh(predicted_xyxy), xyxy_to_xywh(wanted_xyxy))
    wanted = distances_to(points, wanted_xyxy)
    if sides.shape[1] > 4:
        of_sides = distribution_focal_loss(sides, wanted)
    else:
        height, width = size
        shares = strides / numbers([width, height, width, height], strides)
        of_sides = (distances - wanted).abs() * shares
    return torch.stack(((box * found.scores).sum(), entropy, (of_sides.mean(dim=1) * found.scores).sum()))


def distribution_focal_loss(sides: Tensor, wanted: Tensor) -> Tensor:
    """(K, 4R) raw and (K, 4) distances in cells -> (K, 4), Li et al., 2020, equation 6.

    A distance beyond the bins counts as just below the last.
    """
    bins = sides.shape[1] // 4
    log_p = sides.view(-1, 4, bins).log_softmax(dim=2)
    wanted = wanted.clamp(0, bins - 1.01)
    lower = wanted.long()
    share_of_upper = wanted - lower
    at_lower, at_upper = (log_p.gather(2, (lower + step)[..., None]).squeeze(2) for step in (0, 1))
    return -(at_lower * (1 - share_of_upper) + at_upper * share_of_upper)


def _normaliser(name: str) -> str:
    """Of a head: the sum of its target scores."""
    return f"target scores of {name}"


def _images(totals: Mapping[str, Tensor], like: Tensor) -> Tensor:
    return totals[IMAGES].to(like).clamp(min=1)
