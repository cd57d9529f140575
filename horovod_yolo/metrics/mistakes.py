"""Which classes a detector takes for which, and in which images it is wrong most often.

The matrix is that of YOLOv5's and Ultralytics' reports: detections of confidence 0.25 and more are matched
with truths of any class that they overlap by more than 0.45, the pair with the largest overlap first, each
once. Boxes around crowds count neither as missed nor, where they lie over it, as a false alarm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.metrics.matching import FloatArray, ImageDetections, ImageTruths, IntArray, paired_iou

CONFIDENCE = 0.25
OVERLAP = 0.45  # intersection over union
State = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Mistakes:
    """Of a whole set.

    Attributes:
        matrix: (C + 1, C + 1) counts, a row for what was found and a column for what is there. The last of
            both is background: false alarms in the last column, missed objects in the last row.
        images: (n, 3) of the images with mistakes: position in the data set, false alarms, missed objects;
            a wrong class is both. Most mistakes first, then by position.
    """

    matrix: IntArray
    images: IntArray

    @classmethod
    def merged(cls, states: Iterable[State]) -> Mistakes:
        """Of the states of all ranks, in any order."""
        states = list(states)
        images = np.concatenate([state["images"] for state in states])
        order = np.lexsort((images[:, 0], -images[:, 1:].sum(axis=1)))
        return cls(np.sum([state["matrix"] for state in states], axis=0), images[order])


class MistakeCounter:
    """Takes images one by one; the sum of all ranks' states is the same for any split of them."""

    def __init__(self, num_classes: int) -> None:
        self._matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        self._images: list[tuple[int, int, int]] = []

    def add(self, image_id: int, truths: ImageTruths, detections: ImageDetections) -> None:
        """Add one image: its position in the data set, what is there and what was found."""
        found = detections.only(detections.scores >= CONFIDENCE)
        overlaps = _overlaps(found, truths)
        pairs = _pairs(np.where(truths.crowd, 0.0, overlaps))
        of_found, of_truths = pairs.T
        false = np.ones(len(found), bool)
        false[of_found] = False
        covered = (overlaps[:, truths.crowd] > OVERLAP).any(axis=1)
        missed = ~truths.crowd
        missed[of_truths] = False
        false &= ~covered
        seen, there = found.classes[of_found], truths.classes[of_truths]
        background = len(self._matrix) - 1
        rows = np.concatenate((seen, found.classes[false], np.full(missed.sum(), background)))
        columns = np.concatenate((there, np.full(false.sum(), background), truths.classes[missed]))
        np.add.at(self._matrix, (rows, columns), 1)
        wrong = int((seen != there).sum())
        alarms, misses = int(false.sum()) + wrong, int(missed.sum()) + wrong
        if alarms or misses:
            self._images.append((image_id, alarms, misses))

    def state(self) -> State:
        """What `Mistakes.merged` takes."""
        return {"matrix": self._matrix, "images": np.array(self._images, np.int64).reshape(-1, 3)}


def _pairs(overlaps: FloatArray) -> IntArray:
    """(p, 2) detections and truths that belong together, each in one pair: the largest overlap first."""
    candidates = np.argwhere(overlaps > OVERLAP)
    order = np.argsort(-overlaps[tuple(candidates.T)], kind="stable")
    taken: tuple[set[int], set[int]] = (set(), set())
    pairs = []
    for detection, truth in candidates[order].tolist():
        if detection not in taken[0] and truth not in taken[1]:
            taken[0].add(detection)
            taken[1].add(truth)
            pairs.append((detection, truth))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _overlaps(found: ImageDetections, truths: ImageTruths) -> FloatArray:
    """(m, n) intersections over unions; with a crowd, over the detection."""
    m, n = len(found), len(truths)
    one, other = np.repeat(found.boxes_ltwh, n, axis=0), np.tile(truths.boxes_ltwh, (m, 1))
    return paired_iou(one, other, np.tile(truths.crowd, m)).reshape(m, n)
