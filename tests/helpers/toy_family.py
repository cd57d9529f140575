"""A family that shares nothing with anchors, whole and in one file: what a newcomer writes.

Each cell predicts the distances of a box's sides from its point. Which cells answer for a box depends on what
they predict. One head learns from several cells a box; the other, on detached features, from one, and finds
each object once, so that nothing is left to suppress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.boxes import complete_iou, pairwise_iou, xywh_to_xyxy, xyxy_to_xywh
from horovod_yolo.core.types import Decoded, Detections, Targets
from horovod_yolo.families import zoo
from horovod_yolo.families.base import Family, ModelSpec
from horovod_yolo.losses.criterion import IMAGES, Criterion, Loss
from horovod_yolo.models.detector import Detector, Head
from horovod_yolo.models.suppression import Thresholds
from tests.helpers.tiny_zoo import SmallBackbone, SmallNeck

NAME = "toy"
STRIDES = (8, 16)
CELLS_A_BOX = {"many": 4, "one": 1}
Raw = dict[str, list[Tensor]]  # for each branch L maps (B, 4 + C, H_l, W_l)


class ToyHead(Head):
    """Two branches: four distances and C class logits a cell."""

    side: Tensor  # () typical distance in cells

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.strides, self.layer = num_classes, STRIDES, 2
        self.many = nn.ModuleList(nn.Conv2d(c, 4 + num_classes, 1) for c in channels)
        self.one = nn.ModuleList(nn.Conv2d(c, 4 + num_classes, 1) for c in channels)
        self.register_buffer("side", torch.ones(()))

    def forward(self, maps: Sequence[Tensor]) -> Raw:
        many = [conv(x) for conv, x in zip(self.many, maps, strict=True)]
        one = [conv(x.detach()) for conv, x in zip(self.one, maps, strict=True)]
        return {"many": many, "one": one}

    def boxes_and_logits(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """L maps -> boxes_xyxy (B, M, 4) in pixels, logits (B, M, C), points (M, 2) in pixels."""
        boxes, logits, points = [], [], []
        for raw, stride in zip(levels, self.strides, strict=True):
            raw = raw if raw.dtype == torch.float64 else raw.float()
            rows, columns = (torch.arange(n, device=raw.device, dtype=raw.dtype) for n in raw.shape[2:])
            grid = torch.meshgrid(columns + 0.5, rows + 0.5, indexing="xy")
            point = torch.stack(grid, dim=-1).view(-1, 2) * stride
            flat = raw.flatten(2).transpose(1, 2)
            left_top, right_bottom = (F.softplus(flat[..., :4]) * self.side.to(raw) * stride).chunk(2, dim=-1)
            boxes.append(torch.cat((point - left_top, point + right_bottom), dim=-1))
            logits.append(flat[..., 4:])
            points.append(point)
        return torch.cat(boxes, dim=1), torch.cat(logits, dim=1), torch.cat(points)

    def decode(self, predictions: Raw) -> Decoded:
        boxes, logits, _ = self.boxes_and_logits(predictions["one"])
        return Decoded(boxes, logits.sigmoid())

    def suppress(self, decoded: Decoded, thresholds: Thresholds) -> list[Detections]:
        """The best scores as they are."""
        found = []
        for boxes, scores in zip(decoded.boxes_xyxy.detach(), decoded.scores.detach(), strict=True):
            best, order = scores.flatten().sort(descending=True, stable=True)
            order = order[: thresholds.most][best[: thresholds.most] > thresholds.confidence]
            cell, classes = order // scores.shape[1], order % scores.shape[1]
            found.append(Detections(boxes[cell].float(), scores[cell, classes].float(), classes))
        return found


@dataclass(frozen=True)
class Answers:
    """Which cells answer for which boxes, and how much each counts. All lengths are K."""

    image: Tensor
    cell: Tensor
    boxes_xyxy: Tensor  # (K, 4) pixels
    classes: Tensor
    weight: Tensor  # 0..1


class ToyCriterion(Criterion[Raw, dict[str, Answers]]):
    """Box and class terms of two branches, each divided by the weights of its own answers."""

    terms: ClassVar[tuple[str, ...]] = ("box", "cls", "one_box", "one_cls")
    matching_needs_predictions: ClassVar[bool] = True
    normalisers = ("weight of many", "weight of one")

    def __init__(self, head: ToyHead) -> None:
        self._head = head
        self.share_of_many = 0.8

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.share_of_many = 0.8 - 0.6 * epoch / epochs

    def match(self, targets: Targets, size: tuple[int, int], predictions: Raw | None) -> dict[str, Answers]:
        assert predictions is not None
        return {
            name: self._answers(targets, size, levels, CELLS_A_BOX[name])
            for name, levels in predictions.items()
        }

    def _answers(
        self, targets: Targets, size: tuple[int, int], levels: Sequence[Tensor], most: int
    ) -> Answers:
        boxes, logits, points = self._head.boxes_and_logits(levels)
        height, width = size
        truths = xywh_to_xyxy(targets.boxes_xywhn.to(boxes)) * boxes.new_tensor(
            [width, height, width, height]
        )
        found: list[tuple[Tensor, ...]] = []
        for image in range(len(boxes)):
            own = (targets.image == image).nonzero().flatten()
            gaps = torch.cat((points - truths[own, None, :2], truths[own, None, 2:] - points), dim=-1)
            iou = pairwise_iou(truths[own], boxes[image]) * (gaps.amin(dim=-1) > 0)  # (n, M)
            quality = logits[image].sigmoid()[:, targets.classes[own]].T.sqrt() * iou.square()
            chosen = quality.argsort(dim=1, descending=True, stable=True)[:, :most]
            picked = torch.zeros_like(iou, dtype=torch.bool).scatter_(1, chosen, True) & (quality > 0)
            if len(own):  # a cell that several boxes picked is the one's that it overlaps most
                picked &= F.one_hot(iou.argmax(dim=0), len(own)).T.bool()
            box, cell = picked.nonzero(as_tuple=True)
            best = quality.masked_fill(~picked, 0).amax(dim=1).clamp(min=1e-12)
            weight = quality[box, cell] / best[box] * iou.masked_fill(~picked, 0).amax(dim=1)[box]
            found.append(
                (torch.full_like(cell, image), cell, truths[own][box], targets.classes[own][box], weight)
            )
        if not found:
            nothing = targets.image[:0]
            return Answers(nothing, nothing, truths[:0], nothing, truths[:0, 0])
        return Answers(*(torch.cat(column) for column in zip(*found, strict=True)))

    def counts(self, matches: dict[str, Answers]) -> Tensor:
        return torch.stack([matches[name].weight.double().sum() for name in CELLS_A_BOX])

    def __call__(self, predictions: Raw, matches: dict[str, Answers], totals: Mapping[str, Tensor]) -> Loss:
        terms: list[Tensor] = []
        for name, total in zip(CELLS_A_BOX, self.normalisers, strict=True):
            terms += self._of_branch(predictions[name], matches[name], totals[total].clamp(min=1))
        many, one = (terms[0] + terms[1], terms[2] + terms[3])
        total = self.share_of_many * many + (1 - self.share_of_many) * one
        return Loss(total * totals[IMAGES].to(total).clamp(min=1), torch.stack(terms).detach())

    def _of_branch(self, levels: Sequence[Tensor], found: Answers, total: Tensor) -> tuple[Tensor, Tensor]:
        boxes, logits, _ = self._head.boxes_and_logits(levels)
        ciou = complete_iou(xyxy_to_xywh(boxes[found.image, found.cell]), xyxy_to_xywh(found.boxes_xyxy))
        goal = torch.zeros_like(logits)
        goal[found.image, found.cell, found.classes] = found.weight
        entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="sum")
        return (found.weight * (1 - ciou)).sum() / total.to(ciou), entropy / total.to(entropy)


class Toy(Family):
    """One model."""

    name = "toy"
    models: Mapping[str, ModelSpec] = MappingProxyType({NAME: ModelSpec(STRIDES)})

    def build(self, name: str, num_classes: int) -> Detector:
        neck = SmallNeck()
        return Detector(name, SmallBackbone(), neck, ToyHead(neck.channels, num_classes))

    def criterion(self, model: Detector, config: TrainConfig) -> ToyCriterion:
        assert isinstance(model.head, ToyHead)
        return ToyCriterion(model.head)

    def fit_to_data(
        self, model: Detector, boxes_wh_px: NDArray[np.floating[Any]], config: TrainConfig
    ) -> None:
        """Begin with boxes of the mean size."""
        assert isinstance(model.head, ToyHead)
        model.head.side.fill_(float(boxes_wh_px.mean()) / 2 / STRIDES[0] / float(np.log(2)))


def add_toy(patch: pytest.MonkeyPatch) -> None:
    """Let ``--cfg toy`` be a model: the line in the zoo."""
    patch.setattr(zoo, "FAMILIES", (*zoo.FAMILIES, Toy()))
