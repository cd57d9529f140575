"""Validation of whatever finds objects: detections are scored, there is no loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Detections
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.loader import Loader
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.lost_images import require_images
from horovod_yolo.evaluation.evaluator import Scores, in_original
from horovod_yolo.metrics.scores import Evaluation

Find = Callable[[NDArray[np.uint8]], list[Detections]]  # (B, H, W, 3) RGB -> B results in pixels of the input


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What a pass over a validation set needs besides what finds objects."""

    annotations: Annotations
    loader: Loader  # of this rank's slices, in a fixed order
    comm: Communicator
    rect: bool  # what the loader gives: rectangles, or squares
    most: int  # detections of an image that are counted
    fitness_weights: tuple[float, float] = (0.1, 0.9)  # of mAP50 and mAP50-95

    def run(self, find: Find, head: str, collected: dict[int, Detections] | None = None) -> Evaluation:
        """Score what is found. *Collective.* Images that cannot be read any more are left out.

        Args:
            find: the same on all ranks.
            head: which of a model's heads it is, where it has several.
            collected: where given, gets this rank's detections in original pixels by image.

        Raises:
            UserError: on all ranks alike: it fails on a rank, or too many images are lost.
        """
        scores = Scores(self.annotations, self.most)
        images = together(self.comm, lambda: self._score(find, scores, collected))
        states = self.comm.allgather_object((scores.state(), images))
        lost = len(self.annotations) - sum(count for _, count in states)
        require_images(
            self.comm, lost, len(self.annotations), self.loader.lost.values(), self.annotations.root
        )
        summary, mistakes = scores.merged([state for state, _ in states])
        return Evaluation(summary, {}, self.rect, head, self.fitness_weights, mistakes)

    def _score(self, find: Find, scores: Scores, collected: dict[int, Detections] | None) -> int:
        """Take in what is found on this rank; how many images there were."""
        images = 0
        for batch in self.loader.epoch(0):
            found = find(np.ascontiguousarray(batch.images.permute(0, 2, 3, 1).numpy()))
            for index, detections in in_original(found, batch):
                scores.add(index, detections)
                images += 1
                if collected is not None:
                    collected[index] = detections
        return images
