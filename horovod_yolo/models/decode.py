"""From raw predictions to boxes: decoding and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from horovod_yolo.core.boxes import pairwise_iou, xywh_to_xyxy
from horovod_yolo.core.types import Detections, Predictions

try:  # a torchvision that does not fit the torch beside it raises RuntimeError, not ImportError
    from torchvision.ops import nms as torchvision_nms
except (ImportError, RuntimeError):
    torchvision_nms = None

MAX_CANDIDATES = 30_000  # an image; those of the lowest scores are left out
BLOCK = 256  # candidates compared at once


def decode(predictions: Predictions, anchors_px: Tensor, strides: Sequence[int]) -> Tensor:
    """Raw predictions -> (B, M, 5 + C): boxes_xywh in input pixels, then objectness and class probabilities.

    M is the sum of A * H_l * W_l over the levels, in the order level, anchor, row, column. ``anchors_px`` is
    (L, A, 2). The centre may lie half a cell outside its cell, the size reaches four times the anchor
    (YOLOv5): ``xy = (2 sigmoid(t) - 0.5 + cell) * stride``, ``wh = (2 sigmoid(t))^2 * anchor``.
    Half precision is decoded in float32.
    """
    levels = zip(predictions, anchors_px, strides, strict=True)
    return torch.cat([_decode_level(raw, anchors, stride) for raw, anchors, stride in levels], dim=1)


def _decode_level(raw: Tensor, anchors_px: Tensor, stride: int) -> Tensor:
    batch, per_level, height, width, outputs = raw.shape
    p = (raw if raw.dtype == torch.float64 else raw.float()).sigmoid()
    rows = torch.arange(height, device=p.device, dtype=p.dtype)
    columns = torch.arange(width, device=p.device, dtype=p.dtype)
    cell = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (H_l, W_l, 2) x, y
    xy = (p[..., :2] * 2 - 0.5 + cell) * stride
    wh = (p[..., 2:4] * 2).square() * anchors_px.to(p).view(1, per_level, 1, 1, 2)
    decoded = torch.cat((xy, wh, p[..., 4:]), dim=-1)
    return decoded.view(batch, per_level * height * width, outputs)


def non_max_suppression(
    decoded: Tensor,
    conf_threshold: float = 0.001,
    iou_threshold: float = 0.6,
    max_detections: int = 300,
    multi_label: bool = True,
    agnostic: bool = False,
) -> list[Detections]:
    """Decoded predictions (B, M, 5 + C) -> the detections of each of the B images, best first.

    The score is objectness times class probability. With ``multi_label`` a box counts for every class whose
    score is above the threshold, otherwise for its best class. A box is dropped where a better one of its
    class (of any class with ``agnostic``) overlaps it by more than ``iou_threshold``. Rows that are not
    finite are left out. Equal scores: the earlier candidate is the better one, so the result is the same
    on every device and in every run.
    """
    return [
        _suppress(rows, conf_threshold, iou_threshold, max_detections, multi_label, agnostic)
        for rows in decoded.detach()
    ]


def _suppress(
    rows: Tensor,
    conf_threshold: float,
    iou_threshold: float,
    max_detections: int,
    multi_label: bool,
    agnostic: bool,
) -> Detections:
    # Objectness alone bounds the score, and drops most rows before anything is multiplied.
    rows = rows[(rows[:, 4] > conf_threshold) & rows.isfinite().all(dim=1)]
    row, classes, scores = _candidates(rows, conf_threshold, multi_label)
    scores, order = scores.sort(descending=True, stable=True)
    scores, order = scores[:MAX_CANDIDATES], order[:MAX_CANDIDATES]
    boxes_xyxy, classes = xywh_to_xyxy(rows[row[order], :4]), classes[order]
    separated = boxes_xyxy if agnostic else _apart_by_class(boxes_xyxy, classes)
    keep = _greedy_nms(separated, iou_threshold, max_detections)
    return Detections(boxes_xyxy[keep].float(), scores[keep].float(), classes[keep])


def _candidates(rows: Tensor, conf_threshold: float, multi_label: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(n, 5 + C) rows -> row, class and score of each candidate, by row and then class."""
    scores = rows[:, 4:5] * rows[:, 5:]
    if multi_label:
        row, classes = (scores > conf_threshold).nonzero(as_tuple=True)
        return row, classes, scores[row, classes]
    best, classes = scores.max(dim=1)
    (row,) = (best > conf_threshold).nonzero(as_tuple=True)
    return row, classes[row], best[row]


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
