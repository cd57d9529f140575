"""``--image-weights``: images of rare and badly found classes are drawn more often.

The one exception to every image once an epoch: an epoch draws as many images as there are, with replacement.
The draws of an epoch follow from the seed, its number, the labels and the weights of the classes alone. No
sum here depends on how a processor adds, so all ranks draw the same, on unlike machines too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.sampler import Draws, Stream, keyed_generator

Weights = NDArray[np.float64]


class ImageWeights:
    """The weights of a run's images, which its validations change. The same on every rank.

    As in YOLOv5: a class weighs one over its number of objects, times (1 - mAP50-95)^2 of the last
    validation; an image weighs the sum over its objects. So an image without objects is never drawn.
    """

    def __init__(self, annotations: Annotations) -> None:
        single = ~annotations.crowd
        self._images = np.repeat(np.arange(len(annotations)), annotations.counts)[single]
        self._classes = annotations.classes[single].astype(np.int64)
        self._count = len(annotations)
        objects = np.bincount(self._classes, minlength=len(annotations.names))
        self._rarity = 1.0 / np.maximum(objects, 1)
        self.of_classes: Weights = self._rarity
        self._kept: tuple[tuple[int, int], Draws] | None = None

    @property
    def never_drawn(self) -> int:
        """Images without objects."""
        return self._count - len(np.unique(self._images))

    @property
    def of_images(self) -> Weights:
        """(images,) their weights now. Objects are added one by one, in their order."""
        return np.asarray(np.bincount(self._images, self.of_classes[self._classes], self._count), np.float64)

    def learn(self, per_class: Sequence[Mapping[str, Any]]) -> None:
        """Take the numbers of a validation, as ``metrics_of`` gives them, for the next epochs.

        A class without objects there has the mean of the others; where all are found perfectly, only the
        number of their objects counts.
        """
        known = [float(each["mAP50-95"]) for each in per_class if each["instances"]]
        mean = sum(known) / len(known) if known else 0.0
        found = np.array([float(e["mAP50-95"]) if e["instances"] else mean for e in per_class])
        missing = 1.0 - found
        weights = self._rarity * missing * missing
        self._set(weights if weights[self._classes].any() else self._rarity)

    def draws(self, seed: int, epoch: int) -> Draws:
        """Of an epoch, with the weights of now. They are kept until the weights change."""
        key = (seed, epoch)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, _draw(self.of_images, seed, epoch)
        return self._kept[1]

    def state_dict(self) -> dict[str, Any]:
        """Plain builtins for checkpoints."""
        return {"of_classes": self.of_classes.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the weights of a checkpoint."""
        self._set(np.array(state["of_classes"], np.float64))

    def _set(self, of_classes: Weights) -> None:
        self.of_classes, self._kept = of_classes, None


def _draw(weights: Weights, seed: int, epoch: int) -> Draws:
    # cumsum adds from left to right on every processor; a sum may be split into lanes
    ends = np.cumsum(weights)
    points = keyed_generator(seed, Stream.DRAWS, epoch).random(len(weights)) * ends[-1]
    order = np.minimum(np.searchsorted(ends, points, side="right"), np.flatnonzero(weights)[-1])
    by_image = np.argsort(order, kind="stable")
    of_image = order[by_image]
    firsts = np.searchsorted(of_image, of_image, side="left")
    times = np.empty(len(order), np.int64)
    times[by_image] = np.arange(len(order)) - firsts
    for array in (order, times):
        array.setflags(write=False)
    return Draws(order.astype(np.int64, copy=False), times)
