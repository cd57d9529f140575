"""The loss of YOLOv5 and YOLOv3: CIoU, objectness and class cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from horovod_yolo.core.boxes import complete_iou
from horovod_yolo.core.transfer import numbers
from horovod_yolo.core.types import Targets
from horovod_yolo.losses.assign import LevelMatch, assign, on_device
from horovod_yolo.losses.criterion import IMAGES, Criterion, Loss

# Finer levels have more cells, nearly all of them empty; these weights keep their objectness in proportion.
BALANCE_OF_THREE = (4.0, 1.0, 0.4)
BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
FOCAL_ALPHA = 0.25


@dataclass(frozen=True)
class LossWeights:
    """Gains and options of the loss; the names are those of YOLOv5's hyperparameter files."""

    box: float = 0.05
    obj: float = 1.0
    cls: float = 0.5
    cls_pw: float = 1.0  # weight of positive class targets
    obj_pw: float = 1.0  # weight of positive objectness targets
    fl_gamma: float = 0.0  # focal loss exponent, 0 for none
    label_smoothing: float = 0.0
    anchor_t: float = 4.0  # a box and its anchor differ by less than this factor


def scale_weights(weights: LossWeights, num_classes: int, levels: int, imgsz: int) -> LossWeights:
    """Gains for a model and image size, from gains for 3 levels, 80 classes and 640 pixels."""
    per_level = 3 / levels
    return replace(
        weights,
        box=weights.box * per_level,
        obj=weights.obj * per_level * (imgsz / 640) ** 2,
        cls=weights.cls * per_level * num_classes / 80,
    )


class AnchorBasedHead(Protocol):
    """What the loss must know of the head. Its anchors may be replaced after the loss was made."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the L levels, finest first."""

    @property
    def anchors(self) -> Tensor:
        """(L, A, 2) in units of the level's stride."""


class AnchorCriterion(Criterion[Sequence[Tensor], list[LevelMatch]]):
    """Loss of anchor-based predictions: L of (B, A, H_l, W_l, 5 + C), finest level first.

    The total is ``images * (box + obj + cls)``, each the sum over the levels of

    - box: mean of 1 - CIoU over the level's matches;
    - obj: mean over the level's cells and anchors of the cross-entropy with the matched prediction's CIoU
      (0 where nothing is matched, the best where several boxes match), times the level's balance;
    - cls: mean over matches and classes of the cross-entropy; left out for one class.
    """

    terms: ClassVar[tuple[str, ...]] = ("box", "obj", "cls")

    def __init__(self, weights: LossWeights, head: AnchorBasedHead) -> None:
        self.weights = weights
        self.num_classes = head.num_classes
        self._head = head
        levels = len(head.strides)
        self.balance = BALANCE_OF_THREE if levels == 3 else BALANCE[:levels]
        # The head's anchors, which version of them, and a copy on the host.
        self._known_anchors: tuple[Tensor, int, Tensor] | None = None

    @property
    def normalisers(self) -> tuple[str, ...]:
        """The matches of each level."""
        return tuple(f"matches at stride {stride}" for stride in self._head.strides)

    def match(
        self, targets: Targets, size: tuple[int, int], predictions: Sequence[Tensor] | None = None
    ) -> list[LevelMatch]:
        """A level each. They depend on the targets alone."""
        height, width = size
        grid_sizes = [(height // stride, width // stride) for stride in self._head.strides]
        matches = assign(targets, self._anchors_here(), grid_sizes, self.weights.anchor_t)
        return on_device(matches, self._head.anchors.device)

    def _anchors_here(self) -> Tensor:
        """The anchors on the host. A device is waited for when they are new only."""
        anchors = self._head.anchors
        known = self._known_anchors
        if known is None or known[0] is not anchors or known[1] != anchors._version:
            known = self._known_anchors = (anchors, anchors._version, anchors.cpu())
        return known[2]

    def counts(self, matches: list[LevelMatch]) -> Tensor:
        """(L,) float64 matches of each level."""
        return numbers([len(m) for m in matches], matches[0].boxes_xywh.double())

    def __call__(
        self, predictions: Sequence[Tensor], matches: list[LevelMatch], totals: Mapping[str, Tensor]
    ) -> Loss:
        """See `Criterion`."""
        wide = [p if p.dtype == torch.float64 else p.float() for p in predictions]
        counts = [totals[name].to(wide[0]) for name in self.normalisers]
        images = totals[IMAGES].to(wide[0]).clamp(min=1)
        levels = zip(wide, matches, counts, self.balance, strict=True)
        shares = [self._level(p, match, count, images, weight) for p, match, count, weight in levels]
        gains = numbers([self.weights.box, self.weights.obj, self.weights.cls], images)
        terms = torch.stack(shares).sum(dim=0) * gains
        return Loss(terms.sum() * images, terms.detach())

    def _level(
        self, prediction: Tensor, match: LevelMatch, count: Tensor, images: Tensor, weight: float
    ) -> Tensor:
        """(3,) box, obj, cls of one level, without gains."""
        # A count below 1 means no match on any rank; the sums are then 0 and stay so.
        count = count.clamp(min=1)
        matched = prediction[match.image, match.anchor, match.grid_y, match.grid_x]  # (K, 5 + C)
        ciou = complete_iou(_boxes_in_cells(matched, match.anchors_wh), match.boxes_xywh.to(matched))
        box = (1 - ciou).sum() / count
        cls = self._class_sum(matched[:, 5:], match.classes) / (count * self.num_classes)

        logits = prediction[..., 4]
        entropy = self._cross_entropy(logits, _objectness(logits, match, ciou), self.weights.obj_pw)
        cells = logits.shape[1] * logits.shape[2] * logits.shape[3]
        obj = entropy.sum() / (images * cells) * weight
        return torch.stack((box, obj, cls))

    def _class_sum(self, logits: Tensor, classes: Tensor) -> Tensor:
        if self.num_classes == 1:
            return logits.new_zeros(())
        # Smoothing as in Szegedy et al., 2016, but for independent classes: towards 1/2.
        negative = self.weights.label_smoothing / 2
        goal = torch.full_like(logits, negative)
        goal.scatter_(1, classes[:, None], 1 - negative)
        return self._cross_entropy(logits, goal, self.weights.cls_pw).sum()

    def _cross_entropy(self, logits: Tensor, goal: Tensor, positive_weight: float) -> Tensor:
        pos_weight = None if positive_weight == 1 else logits.new_full((), positive_weight)
        entropy = F.binary_cross_entropy_with_logits(logits, goal, pos_weight=pos_weight, reduction="none")
        return (
            entropy * focal_factor(logits, goal, self.weights.fl_gamma) if self.weights.fl_gamma else entropy
        )


def focal_factor(logits: Tensor, goal: Tensor, gamma: float) -> Tensor:
    """alpha_t (1 - p_t)^gamma of Lin et al., "Focal loss for dense object detection", 2017, equation 5.

    For goals between 0 and 1, alpha_t and p_t are interpolated. Any shape; differentiable.
    """
    # 1 - p_t from sigmoids of both signs is exact where p_t is near 1; the power of 0 would have no gradient.
    miss = goal * torch.sigmoid(-logits) + (1 - goal) * torch.sigmoid(logits)
    alpha = goal * FOCAL_ALPHA + (1 - goal) * (1 - FOCAL_ALPHA)
    return alpha * miss.clamp(min=torch.finfo(miss.dtype).tiny) ** gamma


def _boxes_in_cells(matched: Tensor, anchors_wh: Tensor) -> Tensor:
    """(K, 5 + C) raw -> (K, 4) centre relative to the cell's corner and size, in cells."""
    p = matched[:, :4].sigmoid() * 2
    return torch.cat((p[:, :2] - 0.5, p[:, 2:].square() * anchors_wh.to(matched)), dim=1)


def _objectness(logits: Tensor, match: LevelMatch, ciou: Tensor) -> Tensor:
    """Goal of each cell and anchor, (B, A, H_l, W_l): the best CIoU that was matched there, at least 0.

    The maximum does not depend on the order of the matches, so neither does the loss.
    """
    goal = logits.new_zeros(logits.shape)
    _, per_level, height, width = logits.shape
    cell = ((match.image * per_level + match.anchor) * height + match.grid_y) * width + match.grid_x
    goal.view(-1).scatter_reduce_(0, cell, ciou.detach().clamp(min=0), reduce="amax")
    return goal
