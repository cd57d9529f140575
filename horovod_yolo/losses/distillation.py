"""What a student learns from a teacher's answers, beside the loss of its family.

Families answer at other places and in other forms, so student and teacher meet where all are alike: in boxes
and class scores. The teacher's answers are what it would detect, each with its scores for all classes. The
student's predictions that answer for one of them are found as in `task_aligned` (Feng et al., "TOOD:
task-aligned one-stage object detection", 2021), and learn its box and its scores (Hinton et al., "Distilling
the knowledge in a neural network", 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from horovod_yolo.core.boxes import complete_iou, pairwise_iou, xyxy_to_xywh
from horovod_yolo.core.types import Decoded, Targets, TaughtTargets
from horovod_yolo.losses.criterion import IMAGES, Criterion, Loss

TERMS = ("teacher_box", "teacher_cls")
WEIGHT = "weight of the teacher"
ALPHA, BETA = 0.5, 6.0  # powers of score and overlap, as in `task_aligned`
MOST = 10  # predictions that answer for one of the teacher's; of a head that finds each object once one
EPS = 1e-7


@dataclass(frozen=True)
class TeacherGains:
    """Weights of the two terms in the total."""

    box: float
    cls: float


@dataclass(frozen=True)
class TaughtMatches:
    """What the family's matching gives, and the teacher's answers for the same images."""

    own: Any
    targets: TaughtTargets


class DistillingCriterion(Criterion[Any, TaughtMatches]):
    """The loss of the student's family, and two terms more.

    An answer k of the teacher has scores t_k and weighs w_k, the largest of them. The predictions that answer
    for it do so with shares r_j, from 0 to 1 for the one of highest alignment. ``teacher_box`` is
    ``sum w_k r_j (1 - CIoU) / W`` and ``teacher_cls`` ``sum KL(r_j t_k || p_j) / W``, where p_j are the
    prediction's scores, and W, the sum of all w_k, is of the global batch and 1 at least.

    Args:
        own: of the student's family.
        decode: the student's predictions to boxes and scores, of each of its heads; and whether that one is
            to find each object once.
        gains: of the two terms.
    """

    taught = TERMS

    def __init__(
        self,
        own: Criterion[Any, Any],
        decode: Callable[[Any], Sequence[tuple[Decoded, bool]]],
        gains: TeacherGains,
    ) -> None:
        self._own, self._decode, self._gains = own, decode, gains
        self.terms = (*own.terms, *TERMS)  # type: ignore[misc]  # a class's own, but for this one
        self.matching_needs_predictions = own.matching_needs_predictions  # type: ignore[misc]

    @property
    def normalisers(self) -> tuple[str, ...]:
        """The family's, and the weight of the teacher's answers."""
        return (*self._own.normalisers, WEIGHT)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """See `Criterion`."""
        self._own.begin_epoch(epoch, epochs)

    def match(self, targets: Targets, size: tuple[int, int], predictions: Any | None) -> TaughtMatches:
        """See `Criterion`; which predictions answer for the teacher's is found out in the loss."""
        assert isinstance(targets, TaughtTargets)
        return TaughtMatches(self._own.match(targets, size, predictions), targets)

    def counts(self, matches: TaughtMatches) -> Tensor:
        """See `Criterion`."""
        own, scores = self._own.counts(matches.own), matches.targets.taught_scores
        return torch.cat((own, _weights(scores).double().sum()[None].to(own.device)))

    def __call__(self, predictions: Any, matches: TaughtMatches, totals: Mapping[str, Tensor]) -> Loss:
        """See `Criterion`."""
        own = self._own(predictions, matches.own, totals)
        sums = [taught_sums(decoded, matches.targets, once) for decoded, once in self._decode(predictions)]
        terms = torch.stack(sums).mean(dim=0)
        terms = terms / totals[WEIGHT].to(terms).clamp(min=1)
        gain = self._gains.box * terms[0] + self._gains.cls * terms[1]
        total = own.total + gain * totals[IMAGES].to(terms).clamp(min=1)
        return Loss(total, torch.cat((own.terms, terms.detach().to(own.terms))))


def taught_sums(decoded: Decoded, targets: TaughtTargets, once: bool) -> Tensor:
    """(2,) sums of box and cls over a student's predictions, without gains. Differentiable.

    Args:
        decoded: of the student, B images.
        targets: with the teacher's answers, by image.
        once: whether a single prediction is to answer for each.
    """
    sums = decoded.scores.new_zeros(2)
    images = decoded.scores.shape[0]
    ends = torch.bincount(targets.taught_image, minlength=images).cumsum(0).tolist()
    boxes_xyxy, scores = targets.taught_xyxy.to(decoded.boxes_xyxy), targets.taught_scores.to(decoded.scores)
    for image, (start, end) in enumerate(pairwise([0, *ends])):
        if start < end:
            one = decoded.boxes_xyxy[image], decoded.scores[image]
            sums = sums + _sums_of_image(*one, boxes_xyxy[start:end], scores[start:end], once)
    return sums


def _sums_of_image(boxes: Tensor, scores: Tensor, wanted: Tensor, taught: Tensor, once: bool) -> Tensor:
    """(2,) of one image: (M, 4) boxes and (M, C) scores of the student, (K, 4) and (K, C) of the teacher."""
    place, answer, shares = _answers(boxes.detach(), scores.detach(), wanted, taught, 1 if once else MOST)
    overlap = complete_iou(xyxy_to_xywh(boxes[place]), xyxy_to_xywh(wanted[answer]))
    box = ((1 - overlap) * _weights(taught)[answer] * shares).sum()
    return torch.stack((box, _divergence(scores[place], taught[answer] * shares[:, None]).sum()))


@torch.no_grad()
def _answers(
    boxes: Tensor, scores: Tensor, wanted: Tensor, taught: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(J,) which predictions answer, (J,) for which of the teacher's answers, and (J,) with which share.

    A prediction may answer where its centre lies in the teacher's box. One that several want goes to that
    with which it overlaps most.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres >= wanted[:, None, :2]) & (centres <= wanted[:, None, 2:])).all(dim=2)  # (K, M)
    overlap = pairwise_iou(wanted, boxes)
    alignment = scores[:, taught.argmax(dim=1)].T ** ALPHA * overlap**BETA * inside
    best = alignment.topk(min(most, len(boxes)), dim=1)
    picked = torch.zeros_like(inside).scatter_(1, best.indices, best.values > 0)
    owned, answer = overlap.where(picked, -1.0).max(dim=0)
    place = (owned >= 0).nonzero().flatten()
    answer = answer[place]
    return place, answer, alignment[answer, place] / best.values[answer, 0]


def _divergence(scores: Tensor, wanted: Tensor) -> Tensor:
    """(J, C) Kullback-Leibler divergence of two coins; 0 where they are alike."""
    of_one = wanted * ((wanted + EPS).log() - (scores + EPS).log())
    of_none = (1 - wanted) * ((1 - wanted + EPS).log() - (1 - scores + EPS).log())
    return of_one + of_none


def _weights(scores: Tensor) -> Tensor:
    """(K, C) -> (K,)."""
    return scores.amax(dim=1) if len(scores) else scores.new_zeros(0)
