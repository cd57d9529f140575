"""Box conversions and overlap: pure functions over numpy arrays or torch tensors, any leading shape."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BoxArray = TypeVar("BoxArray", NDArray[Any], Tensor)


def _join(first: BoxArray, second: BoxArray) -> BoxArray:
    if isinstance(first, Tensor):
        return torch.cat((first, second), dim=-1)
    return np.concatenate((first, second), axis=-1)


def xywh_to_xyxy(boxes: BoxArray) -> BoxArray:
    """(..., 4) centre and size -> corners."""
    half = boxes[..., 2:] / 2
    return _join(boxes[..., :2] - half, boxes[..., :2] + half)


def xyxy_to_xywh(boxes: BoxArray) -> BoxArray:
    """(..., 4) corners -> centre and size."""
    return _join((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2])


def ltwh_to_xyxy(boxes: BoxArray) -> BoxArray:
    """(..., 4) COCO's left, top, width, height -> corners."""
    return _join(boxes[..., :2], boxes[..., :2] + boxes[..., 2:])


def xyxy_to_ltwh(boxes: BoxArray) -> BoxArray:
    """(..., 4) corners -> COCO's left, top, width, height."""
    return _join(boxes[..., :2], boxes[..., 2:] - boxes[..., :2])


def area(boxes_xyxy: BoxArray) -> BoxArray:
    """(..., 4) corners -> (...,) areas."""
    sides = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    areas: BoxArray = sides[..., 0] * sides[..., 1]
    return areas


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of every pair, (n, 4) and (m, 4) -> (n, m). Empty boxes overlap nothing."""
    top_left = torch.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    bottom_right = torch.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = area(a_xyxy)[:, None] + area(b_xyxy)[None] - inter
    return torch.where(union > 0, inter / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def complete_iou(a_xywh: Tensor, b_xywh: Tensor, eps: float = 1e-7) -> Tensor:
    """CIoU of matched pairs, (n, 4) and (n, 4) -> (n,), differentiable.

    Zheng et al., "Enhancing geometric factors in model learning and inference for object detection
    and instance segmentation", 2020, equations 7 to 10: IoU - rho^2 / c^2 - alpha v. The trade-off
    alpha takes no gradient.
    """
    a, b = xywh_to_xyxy(a_xywh), xywh_to_xyxy(b_xywh)
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    aw, ah = a_xywh[:, 2], a_xywh[:, 3]
    bw, bh = b_xywh[:, 2], b_xywh[:, 3]
    iou = inter / (aw * ah + bw * bh - inter + eps)
    hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    diagonal2 = hull.square().sum(-1) + eps
    distance2 = (a_xywh[:, :2] - b_xywh[:, :2]).square().sum(-1)
    v = (4 / math.pi**2) * (torch.atan(bw / (bh + eps)) - torch.atan(aw / (ah + eps))).square()
    with torch.no_grad():
        alpha = v / (v - iou + (1 + eps))
    return iou - distance2 / diagonal2 - alpha * v
