"""Which cells answer for which ground-truth boxes, by how well they predict them.

Feng et al., "TOOD: task-aligned one-stage object detection", 2021, section 3.2, with rules of YOLOv8 and
YOLO26 for cells that several boxes want, for small boxes, and for a single cell a box.

Pairs of a ground truth and one of its candidate cells are kept in flat lists, all images together, by ground
truth and then cell: no loop runs over images or boxes, and memory follows the candidates, not all cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from horovod_yolo.core.boxes import complete_iou, xywh_to_xyxy, xyxy_to_xywh
from horovod_yolo.core.cells import Cells
from horovod_yolo.core.types import Targets

ALPHA, BETA = 0.5, 6.0  # powers of score and overlap
MARGIN_PX = 1e-9  # a cell's point must be farther inside a box
EPS = 1e-9


@dataclass(frozen=True, kw_only=True)
class AssignmentRules:
    """How cells are assigned.

    1. Candidates of a box are the cells whose point is inside it. For this alone, sides shorter than
       ``least_side`` pixels are lengthened to that.
    2. Of them the ``most`` of highest alignment are picked. Those with an alignment of 0 never are, and of
       equal ones the first.
    3. A cell that several boxes picked goes to the box with which it overlaps most *of all boxes*, also one
       that did not pick it; of equal ones the first.
    4. With ``most_after`` only as many of highest alignment stay.
    """

    least_side: int
    most: int = 10
    most_after: int | None = None


@dataclass(frozen=True)
class Answers:
    """The cells that answer for a ground truth; K of them, each once."""

    image: Tensor  # (K,) int64
    cell: Tensor  # (K,) int64 among the M of its image
    truth: Tensor  # (K,) int64 among the N targets
    boxes_xyxy: Tensor  # (K, 4) of the ground truth, in input pixels
    classes: Tensor  # (K,) int64
    scores: Tensor  # (K,) in 0..1, what the cell's score for the class should be

    def __len__(self) -> int:
        return int(self.image.shape[0])


@dataclass(frozen=True)
class _Pairs:
    """A ground truth and a cell, P times."""

    truth: Tensor  # (P,)
    place: Tensor  # (P,) image * M + cell
    overlap: Tensor  # (P,) CIoU, at least 0
    alignment: Tensor  # (P,) score^alpha * overlap^beta

    @property
    def numbers(self) -> Tensor:
        return torch.arange(len(self.truth), device=self.truth.device)


@torch.no_grad()
def assign_aligned(
    targets: Targets,
    boxes_xyxy: Tensor,
    logits: Tensor,
    cells: Cells,
    size: tuple[int, int],
    rules: AssignmentRules,
) -> Answers:
    """Assign cells to each ground truth, by `AssignmentRules`.

    A box may end up with no cell. The goal of a cell is its alignment, scaled so that the best cell of a box
    gets the largest overlap of its cells. Waits for the device twice, to learn how many candidates and
    answers there are.

    Args:
        targets: N of them.
        boxes_xyxy: (B, M, 4) predicted, in input pixels.
        logits: (B, M, C) predicted, whose sigmoids are the scores.
        cells: the M places.
        size: (H, W) of the input in pixels.
        rules: how many cells, and for which boxes.
    """
    height, width = size
    truths_xyxy = xywh_to_xyxy(targets.boxes_xywhn.to(boxes_xyxy)) * boxes_xyxy.new_tensor(
        [width, height, width, height]
    )
    truth, cell = _candidates(truths_xyxy, cells.points_px, rules.least_side)
    pairs = _aligned(truth, cell, truths_xyxy, targets, boxes_xyxy, logits)
    held = _shared_out(pairs, _best(pairs, pairs.alignment > 0, len(truths_xyxy), rules.most), boxes_xyxy)
    if rules.most_after is not None:
        held = _best(pairs, held, len(truths_xyxy), rules.most_after)
    goals = _goals(pairs, held, len(truths_xyxy))
    kept = held.nonzero().flatten()
    truth = truth[kept]
    return Answers(
        image=targets.image[truth],
        cell=cell[kept],
        truth=truth,
        boxes_xyxy=truths_xyxy[truth],
        classes=targets.classes[truth],
        scores=goals[kept],
    )


def _candidates(truths_xyxy: Tensor, points_px: Tensor, least_side: int) -> tuple[Tensor, Tensor]:
    """(P,) ground truths and cells whose points are inside them."""
    boxes_xywh = xyxy_to_xywh(truths_xyxy)
    sides = boxes_xywh[:, 2:].clamp(min=least_side)
    left, top, right, bottom = xywh_to_xyxy(torch.cat((boxes_xywh[:, :2], sides), dim=1)).T[..., None]
    x, y = points_px.T
    inside = (x > left + MARGIN_PX) & (y > top + MARGIN_PX)  # (N, M)
    inside &= (x < right - MARGIN_PX) & (y < bottom - MARGIN_PX)
    truth, cell = inside.nonzero(as_tuple=True)
    return truth, cell


def _aligned(
    truth: Tensor, cell: Tensor, truths_xyxy: Tensor, targets: Targets, boxes_xyxy: Tensor, logits: Tensor
) -> _Pairs:
    image = targets.image[truth]
    predicted, wanted = xyxy_to_xywh(boxes_xyxy[image, cell]), xyxy_to_xywh(truths_xyxy[truth])
    overlap = complete_iou(wanted, predicted).clamp(min=0)
    scores = logits[image, cell, targets.classes[truth]].sigmoid()
    alignment = scores**ALPHA * overlap**BETA
    return _Pairs(truth, image * boxes_xyxy.shape[1] + cell, overlap, alignment)


def _best(pairs: _Pairs, allowed: Tensor, truths: int, most: int) -> Tensor:
    """(P,) whether a pair is among the ``most`` allowed ones of highest alignment of its ground truth."""
    by_alignment = pairs.alignment.where(allowed, -1.0).sort(descending=True, stable=True).indices
    by_truth = pairs.truth[by_alignment].sort(stable=True)
    order = by_alignment[by_truth.indices]
    ones = torch.ones_like(order)
    first = ones.new_zeros(truths + 1).index_add_(0, pairs.truth + 1, ones).cumsum(0)  # in this order
    rank = torch.empty_like(order)
    rank[order] = pairs.numbers - first[by_truth.values]
    return allowed & (rank < most)


def _shared_out(pairs: _Pairs, picked: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """(P,) which pairs hold, so that every cell has one ground truth at most."""
    batch, cells, _ = boxes_xyxy.shape
    picks = pairs.place.new_zeros(batch * cells).index_add_(0, pairs.place, picked.long())
    largest = boxes_xyxy.new_zeros(batch * cells).scatter_reduce_(0, pairs.place, pairs.overlap, "amax")
    beyond = len(pairs.truth)
    best = pairs.numbers.where(pairs.overlap == largest[pairs.place], beyond)
    owner = pairs.place.new_full((batch * cells,), beyond).scatter_reduce_(0, pairs.place, best, "amin")
    contested = picks[pairs.place] > 1
    return torch.where(contested, pairs.numbers == owner[pairs.place], picked)


def _goals(pairs: _Pairs, held: Tensor, truths: int) -> Tensor:
    """(P,) target scores; of no meaning where a pair does not hold."""

    def largest(values: Tensor) -> Tensor:
        of_truth = values.new_zeros(truths).scatter_reduce_(0, pairs.truth, values.where(held, 0.0), "amax")
        return of_truth[pairs.truth]

    return pairs.alignment * largest(pairs.overlap) / (largest(pairs.alignment) + EPS)
