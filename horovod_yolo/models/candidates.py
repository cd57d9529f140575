"""Which of the boxes that a network gives may be detections, best first: on the CPU, and from a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from horovod_yolo.core.types import Decoded, Ints

FROM_DEVICE = 2048  # candidates of an image that are copied together


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

    def and_then(self, more: Boxes) -> Boxes:
        """These and others behind them."""
        return Boxes(
            np.concatenate((self.images, more.images)),
            np.concatenate((self.boxes_xyxy, more.boxes_xyxy)),
            np.concatenate((self.scores, more.scores)),
            np.concatenate((self.classes, more.classes)),
        )


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
    """Image by image, so that what is looked at stays in the processor's cache."""

    def __init__(self, decoded: Decoded, confidence: float, multi_label: bool, most: int) -> None:
        self._boxes_xyxy = decoded.boxes_xyxy.numpy()
        self._scores = decoded.scores.contiguous().numpy()
        above = np.empty(self._scores.shape[1:], bool)
        self._places = []  # of candidates in an image's scores, row by row
        for boxes_xyxy, scores in zip(self._boxes_xyxy, self._scores, strict=True):
            np.greater(scores, confidence, out=above)
            places = np.flatnonzero(above)
            places = places[_sound(boxes_xyxy, scores, places)]
            self._places.append(places if multi_label else _best_of_rows(scores, places))
        self.counts = np.array([len(places) for places in self._places], np.int64).clip(max=most)

    def take(self, images: Ints, first: int, last: int) -> Boxes:
        """See `Candidates`."""
        classes = self._scores.shape[2]
        places, scores = [], []
        for image in images:
            some = self._places[image]
            its = self._scores[image].reshape(-1)[some]
            end = min(last, int(self.counts[image]))
            if end < len(some):
                enough = np.flatnonzero(its >= np.partition(its, -end)[-end])
                some, its = some[enough], its[enough]
            order = np.argsort(-its, kind="stable")[first:end]
            places.append(some[order])
            scores.append(its[order])
        of = np.repeat(images, [len(some) for some in places])
        row, kinds = np.divmod(_joined(places, np.int64), classes)
        return Boxes(
            of, self._boxes_xyxy[of, row].astype(np.float64), _joined(scores, self._scores.dtype), kinds
        )


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])


def _sound(boxes_xyxy: NDArray[Any], scores: NDArray[Any], places: Ints) -> NDArray[np.bool_]:
    """Whether everything in the row of a place is finite: (n,)."""
    rows = places // scores.shape[1]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    each = rows[starts]
    finite = np.isfinite(boxes_xyxy[each]).all(axis=1) & np.isfinite(scores[each]).all(axis=1)
    return np.repeat(finite, np.diff(starts, append=len(rows)))


def _best_of_rows(scores: NDArray[Any], places: Ints) -> Ints:
    """Of the places in each row that of the best score, of equal ones the first."""
    rows = np.unique(places // scores.shape[1])
    return np.asarray(rows * scores.shape[1] + scores[rows].argmax(axis=1), np.int64)


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
            copies, ranks = self._copies.and_then(more), np.concatenate((self._ranks, ranks))
            order = np.argsort(copies.images, kind="stable")
            self._until, self._ranks, self._copies = until, ranks[order], copies.only(order)
        inside = (self._ranks >= first) & (self._ranks < last)
        return self._copies.only(inside & np.isin(self._copies.images, images))

    def _copied(self, images: Ints, first: int, last: int) -> tuple[Ints, Boxes]:
        """Places among an image's candidates, and the boxes."""
        counts = np.minimum(self.counts[images], last) - np.minimum(self.counts[images], first)
        of = np.repeat(images, counts)
        ranks = first + np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        wanted = torch.from_numpy(self._starts[of] + ranks).to(self._places.device)
        places, classes = self._places[wanted], self._decoded.scores.shape[2]
        columns = (
            self._decoded.boxes_xyxy.flatten(0, 1)[places // classes].double(),
            self._decoded.scores.flatten()[places, None].double(),
            (places % classes)[:, None].double(),
        )
        rows = torch.cat(columns, dim=1).cpu().numpy()
        return ranks, Boxes(of, rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))
