"""Non-maximum suppression: of the boxes that show one object, only the best stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from horovod_yolo.core.boxes import pairwise_iou
from horovod_yolo.core.types import Decoded, Detections

try:  # a torchvision that does not fit the torch beside it raises RuntimeError, not ImportError
    from torchvision.ops import nms as torchvision_nms
except (ImportError, RuntimeError):
    torchvision_nms = None

MAX_CANDIDATES = 30_000  # an image; those of the lowest scores are left out
BLOCK = 256  # candidates compared at once


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What counts as a detection. Defaults are those of validation."""

    confidence: float = 0.001  # scores must be above it
    iou: float = 0.6  # two boxes of a class may overlap by it
    most: int = 300  # detections an image
    multi_label: bool = True  # a box counts for every class above ``confidence``; else for its best
    agnostic: bool = False  # boxes of different classes suppress each other too


def non_max_suppression(decoded: Decoded, thresholds: Thresholds) -> list[Detections]:
    """The detections of each of the B images, best first.

    A box is dropped where a better one of its class (of any class with ``agnostic``) overlaps it by more
    than ``thresholds.iou``. Boxes and scores that are not finite are left out. Equal scores: the earlier
    candidate is the better one, so the result is the same on every device and in every run.
    """
    images = zip(decoded.boxes_xyxy.detach(), decoded.scores.detach(), strict=True)
    return [_suppress(boxes_xyxy, scores, thresholds) for boxes_xyxy, scores in images]


def best_of_each_place(decoded: Decoded, thresholds: Thresholds) -> list[Detections]:
    """The same for a head that finds each object once: nothing is suppressed.

    Of the T = ``thresholds.most`` places with the highest score for any class (or all, if fewer), the T
    highest scores: a place may count for several classes. With ``agnostic`` it counts for its best only.
    """
    boxes_xyxy, scores = decoded.boxes_xyxy.detach(), decoded.scores.detach()
    finite = boxes_xyxy.isfinite().all(dim=2) & scores.isfinite().all(dim=2)
    scores = scores.where(finite[..., None], -1.0)
    place = _highest(scores.amax(dim=2), thresholds.most)  # (B, T)
    scores = scores.take_along_dim(place[..., None], dim=1)  # (B, T, C)
    if thresholds.agnostic:
        scores = scores.where(scores.argmax(dim=2, keepdim=True) == _numbers(scores), -1.0)
    chosen = _highest(scores.flatten(1), place.shape[1])
    classes = chosen % scores.shape[2]
    place = place.take_along_dim(chosen // scores.shape[2], dim=1)
    scores = scores.flatten(1).take_along_dim(chosen, dim=1)
    boxes_xyxy = boxes_xyxy.take_along_dim(place[..., None], dim=1)
    found = zip(boxes_xyxy.float(), scores.float(), classes, scores > thresholds.confidence, strict=True)
    return [Detections(boxes[keep], score[keep], kind[keep]) for boxes, score, kind, keep in found]


def _highest(scores: Tensor, most: int) -> Tensor:
    """(B, n) -> (B, up to ``most``) positions, best first; of equal ones the first."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :most]


def _numbers(scores: Tensor) -> Tensor:
    return torch.arange(scores.shape[2], device=scores.device)


def _suppress(boxes_xyxy: Tensor, scores: Tensor, thresholds: Thresholds) -> Detections:
    """(M, 4) boxes and (M, C) scores of one image."""
    usable = (scores > thresholds.confidence).any(dim=1)  # of most rows nothing is left: cheapest test first
    boxes_xyxy, scores = boxes_xyxy[usable], scores[usable]
    finite = boxes_xyxy.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    boxes_xyxy, scores = boxes_xyxy[finite], scores[finite]
    row, classes, scores = _candidates(scores, thresholds)
    scores, order = scores.sort(descending=True, stable=True)
    scores, order = scores[:MAX_CANDIDATES], order[:MAX_CANDIDATES]
    boxes_xyxy, classes = boxes_xyxy[row[order]], classes[order]
    separated = boxes_xyxy if thresholds.agnostic else _apart_by_class(boxes_xyxy, classes)
    keep = _greedy_nms(separated, thresholds.iou, thresholds.most)
    return Detections(boxes_xyxy[keep].float(), scores[keep].float(), classes[keep])


def _candidates(scores: Tensor, thresholds: Thresholds) -> tuple[Tensor, Tensor, Tensor]:
    """(n, C) scores -> row, class and score of each candidate, by row and then class."""
    if thresholds.multi_label:
        row, classes = (scores > thresholds.confidence).nonzero(as_tuple=True)
        return row, classes, scores[row, classes]
    best, classes = scores.max(dim=1)
    row = torch.arange(len(scores), device=scores.device)
    return row, classes, best


def _apart_by_class(boxes_xyxy: Tensor, classes: Tensor) -> Tensor:
    """Boxes moved so far, class by class, that none overlaps one of another class.

    In float64: with 80 classes the shift would cost float32 some hundredths of a pixel.
    """
    boxes_xyxy = boxes_xyxy.double()
    if len(boxes_xyxy) == 0:
        return boxes_xyxy
    span = boxes_xyxy.max() - boxes_xyxy.min() + 1
    return boxes_xyxy + (classes * span)[:, None]


def _greedy_nms(boxes_xyxy: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Indices of the first ``limit`` survivors of (n, 4) boxes that are sorted best first."""
    if torchvision_nms is not None:
        # Ranks instead of scores: no ties are left to its own order.
        ranks = torch.arange(len(boxes_xyxy), 0, -1, device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)
        keep: Tensor = torchvision_nms(boxes_xyxy, ranks, iou_threshold)[:limit]
        return keep
    return greedy_nms(boxes_xyxy, iou_threshold, limit)


def greedy_nms(boxes_xyxy: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """The same without torchvision. Candidates are taken in blocks, so memory stays at block times ``limit``.

    A block is first held against all that is kept, then its survivors against each other: it ends as soon
    as ``limit`` boxes are kept, mostly long before the last candidate.
    """
    kept = torch.empty(0, dtype=torch.int64, device=boxes_xyxy.device)
    for start in range(0, len(boxes_xyxy), BLOCK):
        if len(kept) >= limit:
            break
        block = torch.arange(start, min(start + BLOCK, len(boxes_xyxy)), device=boxes_xyxy.device)
        free = (pairwise_iou(boxes_xyxy[block], boxes_xyxy[kept]) <= iou_threshold).all(dim=1)
        block = block[free]
        overlaps = pairwise_iou(boxes_xyxy[block], boxes_xyxy[block]) > iou_threshold
        kept = torch.cat((kept, block[_first_of_each(overlaps).to(block.device)]))
    return kept[:limit]


def _first_of_each(overlaps: Tensor) -> Tensor:
    """(k, k) which of k sorted boxes overlap -> indices of those that no earlier survivor overlaps."""
    matrix = overlaps.cpu().numpy()
    dropped = np.zeros(len(matrix), dtype=bool)
    survivors = []
    for i, row in enumerate(matrix):
        if not dropped[i]:
            survivors.append(i)
            dropped |= row
    return torch.tensor(survivors, dtype=torch.int64)
