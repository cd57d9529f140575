"""What a teacher answers for a student to learn: its detections, with their scores for all classes."""

from __future__ import annotations

import torch
from torch import Tensor

from horovod_yolo.core.types import Decoded
from horovod_yolo.models.greedy import first_of_each

CONFIDENCE = 0.1  # scores for a class must be above it
IOU = 0.6  # two answers of a class may overlap by it


@torch.no_grad()
def answers_of(decoded: Decoded, *, finds_once: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The answers for B images, on the CPU, by image and then best first.

    Args:
        decoded: of the teacher.
        finds_once: whether its head needs no suppression.

    Returns:
        (K,) int64 positions of their images, (K, 4) boxes in input pixels, (K, C) scores.
    """
    boxes_xyxy, scores = decoded.boxes_xyxy.cpu(), decoded.scores.cpu()
    best, classes = scores.max(dim=2)
    sound = boxes_xyxy.isfinite().all(dim=2) & scores.isfinite().all(dim=2)
    image, place = ((best > CONFIDENCE) & sound).nonzero(as_tuple=True)
    order = best[image, place].sort(descending=True, stable=True).indices
    image, place = image[order], place[order]
    if not finds_once and len(image):
        groups = image * scores.shape[2] + classes[image, place]
        boxes = boxes_xyxy[image, place].double().numpy()
        kept = torch.from_numpy(first_of_each(boxes, groups.numpy(), IOU))
        image, place = image[kept], place[kept]
    order = image.sort(stable=True).indices
    image, place = image[order], place[order]
    return image, boxes_xyxy[image, place], scores[image, place]
