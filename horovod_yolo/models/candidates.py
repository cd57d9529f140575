"""Which of the boxes that a network gives may be detections, best first: on the CPU, and from a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from horovod_yolo.core.types import Decoded, Ints

FROM_DEVICE = 2048  # candidates of an image that are copied together
LOOKED_AT_TOGETHER = 1 << 18  # scores: of few classes those of several images
FEWEST_IN_EIGHTS = 1 << 16  # marks: below, numpy's calls cost more than what they look at
SORTED_FIRST = 1024  # candidates of an image; mostly they are enough


@dataclass(frozen=True)
class Boxes:
    """n boxes of some images, on the CPU."""

    images: Ints  # (n,) place in the batch
    boxes_xyxy: NDArray[np.float64]  # (n, 4)
    scores: NDArray[Any]  # (n,)
    classes: Ints  # (n,)

    def only(self, chosen: Any) -> Boxes:
        """Those that ``chosen`` marks, or whose places it has."""
        columns = (self.images, self.boxes_xyxy, self.scores, self.classes)
        return Boxes(*(column[chosen] for column in columns))

    @classmethod
    def joined(cls, parts: Sequence[Boxes]) -> Boxes:
        """The boxes of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        columns = ("images", "boxes_xyxy", "scores", "classes")
        return cls(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))


class Candidates(Protocol):
    """Boxes with a score above a threshold, of equal scores the earlier one first; finite ones only."""

    counts: Ints  # (B,) how many an image has

    def take(self, images: Ints, first: int, last: int) -> Boxes:
        """Of each of some images, in rising order, the candidates from ``first`` to before ``last``."""


def candidates_of(decoded: Decoded, confidence: float, *, multi_label: bool, most: int) -> Candidates:
    """Those of B images.

    Args:
        decoded: on any device.
        confidence: a box is a candidate for a class where its score is above it.
        multi_label: for every such class; else for the best of them, of equal ones the first.
        most: of an image; the others are left out.
    """
    decoded = Decoded(decoded.boxes_xyxy.detach(), decoded.scores.detach())
    kind = _OnCpu if decoded.scores.device.type == "cpu" else _OnDevice
    return kind(decoded, confidence, multi_label, most)


class _OnCpu:
    """A few images at a time, so that what is taken of the scores is still in the processor's cache."""

    def __init__(self, decoded: Decoded, confidence: float, multi_label: bool, most: int) -> None:
        boxes_xyxy, scores = decoded.boxes_xyxy.numpy(), decoded.scores.contiguous().numpy()
        images = len(scores)
        together = min(max(LOOKED_AT_TOGETHER // max(math.prod(scores.shape[1:]), 1), 1), max(images, 1))
        marks, parts = _Marks(math.prod(scores[:together].shape)), []
        for first in range(0, max(images, 1), together):
            some = slice(first, first + together)
            places = marks.above(scores[some], confidence)
            part = _of_images(boxes_xyxy[some], scores[some], places, multi_label, most)
            parts.append(replace(part, images=first + part.images))
        self._found = Boxes.joined(parts)
        self.counts = np.bincount(self._found.images, minlength=images).clip(max=most)
        self._most = most
        self._sort(SORTED_FIRST)

    def _sort(self, until: int) -> None:
        """So many of each image."""
        found = self._found.only(_best(self._found.images, self._found.scores, until))
        order = np.argsort(-found.scores, kind="stable")
        order = order[
            np.argsort(found.images[order].astype(np.uint16), kind="stable")
        ]  # 16 bits numpy only counts
        counts = np.bincount(found.images, minlength=len(self.counts))
        self._sorted, self._starts, self._until = found.only(order), np.cumsum(counts) - counts, until

    def take(self, images: Ints, first: int, last: int) -> Boxes:
        """See `Candidates`."""
        if last > self._until:
            self._sort(self._most)
        of, ranks = _ranks(self.counts, images, first, last)
        return self._sorted.only(self._starts[of] + ranks)


class _Marks:
    """A byte for each of up to ``most`` scores, to be used again.

    Most are 0, so eight are looked at together: numpy finds few marks among bytes half as fast.
    """

    def __init__(self, most: int) -> None:
        self._bytes = np.zeros(-(-most // 8) * 8, bool)

    def above(self, scores: NDArray[Any], confidence: float) -> Ints:
        """Places of the scores above it, in rising order."""
        marks = self._bytes[: -(-scores.size // 8) * 8]
        np.greater(scores, confidence, out=marks[: scores.size].reshape(scores.shape))
        marks[scores.size :] = False
        if len(marks) < FEWEST_IN_EIGHTS:
            return np.flatnonzero(marks)
        eights = np.flatnonzero(marks.view(np.uint64) != 0)
        if len(eights) > len(marks) // 64:  # not so few
            return np.flatnonzero(marks)
        found = np.flatnonzero(marks.reshape(-1, 8).take(eights, 0))
        places: Ints = eights[found >> 3] * 8 + (found & 7)
        return places


def _of_images(
    boxes_xyxy: NDArray[Any], scores: NDArray[Any], places: Ints, multi_label: bool, most: int
) -> Boxes:
    """Candidates of some images, by image, row and then class.

    Where a network has learnt nothing yet they may be millions: of each image only the ``most`` best and
    their equals.

    Args:
        boxes_xyxy: (G, M, 4).
        scores: (G, M, C).
        places: of the scores above the threshold, in rising order.
        multi_label: see `candidates_of`.
        most: candidates of an image.
    """
    of_image, of_row = scores.shape[1:]
    boxes_xyxy, scores = boxes_xyxy.reshape(-1, 4), scores.reshape(-1, of_row)
    rows = places // max(of_row, 1)
    seen = (
        (scores, boxes_xyxy) if len(rows) >= len(scores) else (scores.take(rows, 0), boxes_xyxy.take(rows, 0))
    )
    with np.errstate(all="ignore"):
        all_finite = np.isfinite(sum(numbers.sum() for numbers in seen))
    if not all_finite:  # or their sum is too large, which is no matter
        finite = np.isfinite(scores).all(axis=1) & np.isfinite(boxes_xyxy).all(axis=1)
        places, rows = places[finite[rows]], rows[finite[rows]]
    if multi_label:
        its, classes = scores.reshape(-1).take(places), places - rows * of_row
    else:
        rows = rows[np.flatnonzero(np.diff(rows, prepend=-1))]
        classes = scores[rows].argmax(axis=1)
        its = scores[rows, classes]
    images = rows // max(of_image, 1)
    best = _best(images, its, most)
    boxes = boxes_xyxy.take(rows[best], 0).astype(np.float64)
    return Boxes(images[best], boxes, its[best], classes[best])


def _best(images: Ints, scores: NDArray[Any], most: int) -> Any:
    """Index of the ``most`` highest scores of each image, and their equals; ``images`` rise."""
    counts = np.bincount(images)
    if counts.max(initial=0) <= most:
        return slice(None)
    best, ends = np.ones(len(images), bool), np.cumsum(counts)
    for image in np.flatnonzero(counts > most):
        its = slice(ends[image] - counts[image], ends[image])
        best[its] = scores[its] >= np.partition(scores[its], -most)[-most]
    return best


def _ranks(counts: Ints, images: Ints, first: int, last: int) -> tuple[Ints, Ints]:
    """Image and number of each candidate from ``first`` to before ``last`` where images have ``counts``."""
    numbers = np.minimum(counts[images], last) - np.minimum(counts[images], first)
    of = np.repeat(images, numbers)
    return of, first + np.arange(len(of)) - np.repeat(np.cumsum(numbers) - numbers, numbers)


class _OnDevice:
    """All images at once: the CPU waits three times, and again where more of them are needed."""

    def __init__(self, decoded: Decoded, confidence: float, multi_label: bool, most: int) -> None:
        self._decoded = decoded
        scores = decoded.scores
        rows, classes = scores.shape[1:]
        finite = decoded.boxes_xyxy.isfinite().all(dim=2) & scores.isfinite().all(dim=2)
        above = (scores > confidence) & finite[..., None]
        if not multi_label:
            numbers = torch.arange(classes, device=scores.device)
            best = numbers.where(scores == scores.amax(dim=2, keepdim=True), classes).amin(dim=2)
            above &= numbers == best[..., None]
        places = above.flatten().nonzero()[:, 0]
        order = scores.flatten()[places].sort(descending=True, stable=True).indices
        order = order[(places[order] // (rows * classes)).sort(stable=True).indices]
        self._places = places[order]
        counts = above.flatten(1).sum(dim=1).cpu().numpy()
        self._starts = np.cumsum(counts) - counts
        self.counts = counts.clip(max=most)
        self._until = 0  # so many of each image have been copied
        nothing: Ints = np.empty(0, np.int64)
        self._ranks = nothing
        self._copies = Boxes(nothing, np.empty((0, 4)), np.empty(0), nothing)

    def take(self, images: Ints, first: int, last: int) -> Boxes:
        """See `Candidates`."""
        if last > self._until:
            until = max(last, FROM_DEVICE)
            ranks, more = self._copied(images, self._until, until)
            copies, ranks = Boxes.joined((self._copies, more)), np.concatenate((self._ranks, ranks))
            order = np.argsort(copies.images, kind="stable")
            self._until, self._ranks, self._copies = until, ranks[order], copies.only(order)
        inside = (self._ranks >= first) & (self._ranks < last)
        return self._copies.only(inside & np.isin(self._copies.images, images))

    def _copied(self, images: Ints, first: int, last: int) -> tuple[Ints, Boxes]:
        """Places among an image's candidates, and the boxes."""
        of, ranks = _ranks(self.counts, images, first, last)
        wanted = torch.from_numpy(self._starts[of] + ranks).to(self._places.device)
        places, classes = self._places[wanted], self._decoded.scores.shape[2]
        columns = (
            self._decoded.boxes_xyxy.flatten(0, 1)[places // classes].double(),
            self._decoded.scores.flatten()[places, None].double(),
            (places % classes)[:, None].double(),
        )
        rows = torch.cat(columns, dim=1).cpu().numpy()
        return ranks, Boxes(of, rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))
