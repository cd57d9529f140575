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

from horovod_yolo.core.boxes import complete_iou, xyxy_to_xywh
from horovod_yolo.losses.candidates import Candidates

ALPHA, BETA = 0.5, 6.0  # powers of score and overlap
EPS = 1e-9


@dataclass(frozen=True, kw_only=True)
class AssignmentRules:
    """How cells are assigned.

    1. Of the candidates of a box, the cells whose point is inside it, the ``most`` of highest alignment are
       picked. Those with an alignment of 0 never are, and of equal ones the first.
    2. A cell that several boxes picked goes to the box with which it overlaps most *of all boxes*, also one
       that did not pick it; of equal ones the first.
    3. With ``most_after`` only as many of highest alignment stay.
    """

    most: int = 10
    most_after: int | None = None


@dataclass(frozen=True)
class Answers:
    """The cells that answer for a ground truth; K of them, each once.

    On a device K is as large as it can be, and behind those that answer there are others, with a score of 0.
    """

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
    candidates: Candidates, boxes_xyxy: Tensor, logits: Tensor, rules: AssignmentRules
) -> Answers:
    """Assign cells to each ground truth, by `AssignmentRules`.

    A box may end up with no cell. The goal of a cell is its alignment, scaled so that the best cell of a box
    gets the largest overlap of its cells. Nobody waits for a device.

    Args:
        candidates: of N targets.
        boxes_xyxy: (B, M, 4) predicted, in input pixels.
        logits: (B, M, C) predicted, whose sigmoids are the scores.
        rules: how many cells.
    """
    count = len(candidates.truths_xyxy)
    pairs = _aligned(candidates, boxes_xyxy, logits)
    held = _shared_out(pairs, _best(pairs, pairs.alignment > 0, count, rules.most), boxes_xyxy)
    if rules.most_after is not None:
        held = _best(pairs, held, count, rules.most_after)
    goals = _goals(pairs, held, count)
    kept, answers = _kept(held, count * (rules.most_after or rules.most))
    truth = candidates.truth[kept]
    return Answers(
        image=candidates.image[truth],
        cell=candidates.cell[kept],
        truth=truth,
        boxes_xyxy=candidates.truths_xyxy[truth],
        classes=candidates.classes[truth],
        scores=goals[kept].where(answers, 0.0),
    )


def _kept(held: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(K,) numbers of the pairs that hold, of which there are no more than ``most``, and whether each does.

    Only the host knows without waiting how many there are. On a device others fill the rest, each its own:
    a cell that stood there often would have its gradients added one after the other.
    """
    if held.device.type == "cpu":
        kept = held.nonzero().flatten()
        return kept, torch.ones_like(kept, dtype=torch.bool)
    size = min(most, len(held))
    numbers = torch.arange(len(held), device=held.device)
    slots = (held.cumsum(0) - 1).where(held, size)
    kept = numbers.new_zeros(size + 1).scatter_(0, slots, numbers)[:size]
    answers = numbers[:size] < held.sum()
    return kept.where(answers, numbers[:size]), answers


def _aligned(candidates: Candidates, boxes_xyxy: Tensor, logits: Tensor) -> _Pairs:
    truth, cell = candidates.truth, candidates.cell
    image = candidates.image[truth]
    wanted = xyxy_to_xywh(candidates.truths_xyxy[truth])
    predicted = xyxy_to_xywh(boxes_xyxy[image, cell])
    overlap = complete_iou(wanted, predicted).clamp(min=0)
    scores = logits[image, cell, candidates.classes[truth]].sigmoid()
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
