"""Detection quality of a data set that any number of ranks looked at, image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.metrics.matching import (
    IOU_THRESHOLDS,
    FloatArray,
    ImageDetections,
    ImageTruths,
    IntArray,
    Matches,
    match_images,
)
from horovod_yolo.metrics.summary import ClassSummary, Curves, DetectionSummary, State, summarise

__all__ = ["ClassSummary", "Curves", "DetectionAccumulator", "DetectionSummary", "State"]

_FLUSH_AT = 1 << 18  # detection-truth pairs (an upper bound) that wait before they are matched together
MAX_DETECTIONS = (
    300  # of an image, as suppression leaves; pycocotools' own limit, 100 a class, is COCO_LIMITS
)
COCO_LIMITS = (1, 10, 100)
Columns = Mapping[str, NDArray[np.generic]]
_SETTINGS = ("iou_thresholds", "max_detections")


class DetectionAccumulator:
    """Takes images one by one, gives a small state to gather, and the same summary for any split of them."""

    def __init__(
        self,
        num_classes: int,
        iou_thresholds: Sequence[float] | FloatArray = IOU_THRESHOLDS,
        max_detections: Sequence[int] = (1, 10, MAX_DETECTIONS),
    ) -> None:
        self.num_classes = num_classes
        self.iou_thresholds = np.asarray(iou_thresholds, np.float64)
        self.max_detections = tuple(sorted(max_detections))
        if not np.isclose(self.iou_thresholds, 0.5).any() or len(self.max_detections) != 3:
            raise ValueError(
                f"need an IoU threshold 0.5 and three limits on detections, "
                f"got {self.iou_thresholds} and {self.max_detections}"
            )
        self._seen: set[int] = set()
        self._waiting: list[tuple[int, ImageTruths, ImageDetections]] = []
        self._waiting_pairs = 0
        self._matched: list[Columns] = []

    def add(self, image_id: int, truths: ImageTruths, detections: ImageDetections) -> None:
        """Add one image: its position in the data set, what is there and what was found.

        Raises:
            ValueError: the image was added before, or a class is not below ``num_classes``.
        """
        for classes in (truths.classes, detections.classes):
            if len(classes) and not 0 <= classes.min() <= classes.max() < self.num_classes:
                raise ValueError(f"image {image_id} has a class outside 0..{self.num_classes - 1}")
        self._remember([image_id])
        self._waiting.append((image_id, truths, detections))
        self._waiting_pairs += len(detections) * (1 + len(truths))
        if self._waiting_pairs >= _FLUSH_AT:
            self._match_waiting()

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that the summary needs, sorted by image, as plain arrays.

        About 18 bytes a detection, 10 more for one that overlaps a truth, 5 a truth and 32 an image: what
        is true or false is packed eight to a byte.
        """
        self._match_waiting()
        self._matched = [_sorted_by_image(_concatenated([self._no_images(), *self._matched]))]
        limits = np.asarray(self.max_detections, np.int64)
        return {**self._matched[0], "iou_thresholds": self.iou_thresholds, "max_detections": limits}

    @classmethod
    def merged(cls, num_classes: int, states: Sequence[State]) -> DetectionAccumulator:
        """One accumulator from those of all ranks; neither the split nor the order of states matters.

        Raises:
            ValueError: no state, an image in two states, or states of different settings.
        """
        if not states:
            raise ValueError("there is no state to merge")
        thresholds, limits = (states[0][name] for name in _SETTINGS)
        result = cls(num_classes, np.asarray(thresholds, np.float64), np.asarray(limits, np.int64).tolist())
        for state in states:
            if any(not np.array_equal(state[name], states[0][name]) for name in _SETTINGS):
                raise ValueError(
                    "states of different IoU thresholds or limits on detections cannot be merged"
                )
            result._remember(np.asarray(state["images"], np.int64).tolist())
            result._matched.append({name: column for name, column in state.items() if name not in _SETTINGS})
        return result

    def summary(self) -> DetectionSummary:
        """Compute all numbers. Nothing is communicated: merge the states of all ranks first."""
        return summarise(self.state(), self.num_classes)

    def _remember(self, image_ids: Sequence[int]) -> None:
        for image_id in image_ids:
            if image_id in self._seen:
                raise ValueError(f"image {image_id} was added twice")
            self._seen.add(image_id)

    def _match_waiting(self) -> None:
        if not self._waiting:
            return
        ids, truths, detections = zip(*self._waiting, strict=True)
        matches = match_images(truths, detections, self.iou_thresholds, self.max_detections[-1])
        self._matched.append(_packed(np.asarray(ids, np.int64), matches))
        self._waiting, self._waiting_pairs = [], 0

    def _no_images(self) -> dict[str, NDArray[np.generic]]:
        nothing = ImageTruths(np.zeros((0, 4)), *(np.zeros(0, kind) for kind in (np.int64, bool, np.float64)))
        nowhere = ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
        matches = match_images([nothing], [nowhere], self.iou_thresholds, self.max_detections[-1])
        return _packed(np.zeros(0, np.int64), matches)


def _packed(image_ids: IntArray, matches: Matches) -> dict[str, NDArray[np.generic]]:
    """The columns of a state: one row an image, a detection or a truth."""
    outcomes = np.stack((matches.hits, matches.matched), axis=1)
    paired_images = matches.detection_images[matches.paired]
    return {
        "images": image_ids,
        "detections_per_image": np.bincount(matches.detection_images, minlength=len(image_ids)),
        "paired_per_image": np.bincount(paired_images, minlength=len(image_ids)),
        "truths_per_image": np.bincount(matches.truth_images, minlength=len(image_ids)),
        "detection_classes": matches.detection_classes.astype(np.int32),
        "scores": matches.scores.astype(np.float64),
        "ranks": matches.ranks.astype(np.int32),
        "in_range": np.packbits(matches.in_range, axis=1),
        "paired": matches.paired.astype(np.uint8),
        "outcomes": np.packbits(outcomes.reshape(len(outcomes), math.prod(outcomes.shape[1:])), axis=1),
        "truth_classes": matches.truth_classes.astype(np.int32),
        "truths_counted": np.packbits(matches.truths_counted, axis=1),
    }


def _concatenated(states: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([columns[name] for columns in states]) for name in states[0]}


def _sorted_by_image(columns: Columns) -> Columns:
    """Reorder the images, and what belongs to them; the order within an image stays."""
    images = np.asarray(columns["images"], np.int64)
    if (np.diff(images) > 0).all():
        return columns
    order = np.argsort(images, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    of_detections, of_paired, of_truths = (
        np.argsort(np.repeat(places, np.asarray(columns[f"{what}_per_image"], np.int64)), kind="stable")
        for what in ("detections", "paired", "truths")
    )
    rows = {name: order for name in columns if name == "images" or name.endswith("_per_image")}
    rows |= {"outcomes": of_paired} | dict.fromkeys(("truth_classes", "truths_counted"), of_truths)
    return {name: column[rows.get(name, of_detections)] for name, column in columns.items()}
