"""Non-maximum suppression: of the boxes that show one object, only the best stays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from horovod_yolo.core.types import Decoded, Detections, Ints
from horovod_yolo.models.candidates import Boxes, candidates_of
from horovod_yolo.models.greedy import first_of_each, overlapped

MAX_CANDIDATES = 30_000  # an image; those of the lowest scores are left out
FIRST = 16  # candidates of an image that are looked at first
GROWTH = 8  # then up to so many times as many: what is found by then drops most of them, or is enough
LEAST_GROWTH = 1.25  # where an image lacks a few detections only
MARGIN = 1.25  # more candidates than are needed if as many of them are found as of the last


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What counts as a detection. Defaults are those of validation."""

    confidence: float = 0.001  # scores must be above it
    iou: float = 0.6  # two boxes of a class may overlap by it
    most: int = 300  # detections an image
    multi_label: bool = True  # a box counts for every class above ``confidence``; else for its best
    agnostic: bool = False  # boxes of different classes suppress each other too


def non_max_suppression(decoded: Decoded, thresholds: Thresholds) -> list[Detections]:
    """The detections of each of the B images, best first, on the CPU.

    A box is dropped where a better one of its class (of any class with ``agnostic``) overlaps it by more
    than ``thresholds.iou``. Boxes and scores that are not finite are left out. Equal scores: the earlier
    candidate is the better one, and overlaps are computed in double precision, so the result is the same on
    every device and in every run.
    """
    images, _, classes = decoded.scores.shape
    candidates = candidates_of(
        decoded, thresholds.confidence, multi_label=thresholds.multi_label, most=MAX_CANDIDATES
    )
    unfinished = np.flatnonzero(candidates.counts)
    first, last = 0, FIRST
    found = candidates.take(unfinished, 0, 0)
    while len(unfinished):
        new = candidates.take(unfinished, first, last)
        if first:
            new = new.only(~_overlapped(new, found, classes, thresholds))
        new = new.only(first_of_each(new.boxes_xyxy, _groups(new, classes, thresholds), thresholds.iou))
        found = Boxes.joined((found, new))
        numbers = np.bincount(found.images, minlength=images)
        unfinished = np.flatnonzero((numbers < thresholds.most) & (candidates.counts > last))
        latest = np.bincount(new.images, minlength=images)[unfinished]
        lacking = thresholds.most - numbers[unfinished]
        first, last = last, _next_last(first, last, latest, lacking)
    return _per_image(found, images, thresholds.most)


def _next_last(first: int, last: int, latest: Ints, lacking: Ints) -> int:
    """Up to which candidate of each image to look next, after those from ``first`` to before ``last``.

    So far that most images should have enough: each finds as many of the next as of the last.

    Args:
        first: place among an image's candidates, best first.
        last: likewise.
        latest: (n,) how many of those were found in each unfinished image.
        lacking: (n,) how many detections each may still have.
    """
    if not len(lacking):
        return last
    needed = float(np.median(MARGIN * lacking * (last - first) / np.maximum(latest, 1)))
    return last + math.ceil(min(max(needed, (LEAST_GROWTH - 1) * last), (GROWTH - 1) * last))


def _overlapped(new: Boxes, found: Boxes, classes: int, thresholds: Thresholds) -> NDArray[np.bool_]:
    groups = _groups(new, classes, thresholds), _groups(found, classes, thresholds)
    return overlapped(new.boxes_xyxy, groups[0], found.boxes_xyxy, groups[1], thresholds.iou)


def _groups(boxes: Boxes, classes: int, thresholds: Thresholds) -> Ints:
    """Numbers that are equal where boxes may suppress each other."""
    return boxes.images if thresholds.agnostic else boxes.images * classes + boxes.classes


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
    columns = (boxes_xyxy, scores[..., None], classes[..., None], (scores > thresholds.confidence)[..., None])
    rows = torch.cat([column.double() for column in columns], dim=2).cpu()
    kept = [image[image[:, 6] == 1] for image in rows]
    return [Detections(one[:, :4].float(), one[:, 4].float(), one[:, 5].long()) for one in kept]


def _highest(scores: Tensor, most: int) -> Tensor:
    """(B, n) -> (B, up to ``most``) positions, best first; of equal ones the first."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :most]


def _numbers(scores: Tensor) -> Tensor:
    return torch.arange(scores.shape[2], device=scores.device)


def _per_image(found: Boxes, images: int, most: int) -> list[Detections]:
    """The first ``most`` of each image."""
    found = found.only(np.argsort(found.images, kind="stable"))
    places = np.arange(len(found.images)) - np.searchsorted(found.images, found.images, side="left")
    found = found.only(places < most)
    counts = np.bincount(found.images, minlength=images).tolist()
    boxes_xyxy, scores, classes = (
        torch.split(torch.from_numpy(column), counts)
        for column in (found.boxes_xyxy.astype(np.float32), found.scores.astype(np.float32), found.classes)
    )
    return [Detections(*one) for one in zip(boxes_xyxy, scores, classes, strict=True)]
