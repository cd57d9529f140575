"""Validation over all ranks: each scores its slices, the matches are merged, the AP is over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from horovod_yolo.core.boxes import xyxy_to_ltwh
from horovod_yolo.core.errors import StoppedError
from horovod_yolo.core.precision import Precision
from horovod_yolo.core.slices import Slices, in_parts, of_parts
from horovod_yolo.core.types import Batch, Detections
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.loader import Loader
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.lost_images import require_images
from horovod_yolo.losses.criterion import IMAGES, Criterion, by_name, count
from horovod_yolo.metrics.accumulator import DetectionAccumulator
from horovod_yolo.metrics.matching import ImageDetections, ImageTruths
from horovod_yolo.metrics.mistakes import MistakeCounter, Mistakes
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.metrics.summary import DetectionSummary
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.fusing import fused
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.process.stop import StopRequest


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What a pass over a validation set needs besides the model."""

    annotations: Annotations
    loader: Loader  # of this rank's slices, in a fixed order
    criterion: Criterion[Any, Any]
    comm: Communicator
    precision: Precision
    rect: bool = True  # what the loader gives: rectangles, or squares
    thresholds: Thresholds = field(default_factory=Thresholds)
    stop: StopRequest = field(default_factory=StopRequest)
    fitness_weights: tuple[float, float] = (0.1, 0.9)  # of mAP50 and mAP50-95
    micro_batches: int = 1  # in which a slice is scored: more of them need less memory
    left_out: set[int] = field(default_factory=set)  # positions of images that any rank has lost

    @torch.no_grad()
    def run(self, model: Detector, collected: dict[int, Detections] | None = None) -> Evaluation:
        """Score a model. *Collective.* Images that cannot be read any more are left out.

        In a pass one rank is asked for an image. What it has lost is missing, whatever others can read; from
        the next pass on all do without, so that it does not count who has which slice.

        Args:
            model: weights equal on all ranks; left in evaluation mode.
            collected: where given, gets this rank's detections in original pixels by image.

        Raises:
            StoppedError: a rank was asked to stop; on all ranks in the same batch.
            UserError: too many images are lost, on all ranks alike.
        """
        model = fused(model.eval())
        scores = Scores(self.annotations, self.thresholds.most)
        terms = self.criterion.terms
        losses = torch.zeros((2, len(terms) + 1), dtype=torch.float64, device=self.precision.device)
        for batch in self.loader.epoch(0):
            passes = [one for part in batch.in_slices() for one in part.split(self.micro_batches)]
            micro_batches = [one for one in passes if len(one)] or [batch.without_images()]
            matches, kept = self._match(model, micro_batches)
            totals = self._totals(matches, len(batch))
            for micro_batch, matched, predictions in zip(micro_batches, matches, kept, strict=True):
                if predictions is None:
                    predictions = self._forward(model, micro_batch)
                losses += self._losses(predictions, matched, totals, len(micro_batch))
                for index, found in self._found(model, predictions, micro_batch):
                    scores.add(index, found)
                    if collected is not None:
                        collected[index] = found
        seen = [image.position for image in self.loader.lost.values()]
        states, lost_on = zip(*self.comm.allgather_object((scores.state(), seen)), strict=True)
        self.leave_out(position for positions in lost_on for position in positions)
        summary, mistakes = scores.merged(states)
        *sums, images = of_parts(self.comm.allreduce_sum(losses, "validation.losses").wait()).tolist()
        lost = len(self.annotations) - int(images)
        require_images(
            self.comm, lost, len(self.annotations), self.loader.lost.values(), self.annotations.root
        )
        means = {term: value / max(images, 1.0) for term, value in zip(terms, sums, strict=True)}
        return Evaluation(summary, means, self.rect, model.head.used, self.fitness_weights, mistakes)

    def prepare(self) -> None:
        """Let the data workers begin with the next pass."""
        self.loader.prepare(0)

    def share(self, slices: Slices) -> None:
        """Score other slices of each batch from the next pass on."""
        self.loader.share(slices)

    def leave_out(self, positions: Iterable[int]) -> None:
        """Do without these images of the set from the next pass on; all ranks must."""
        new = set(positions) - self.left_out
        if new:
            self.left_out.update(new)
            self.loader.leave_out(new)

    def close(self) -> None:
        """End the data workers."""
        self.loader.close()

    def _match(self, model: Detector, micro_batches: Sequence[Batch]) -> tuple[list[Any], list[Any]]:
        """The matches of each micro-batch, and its predictions where these were needed for that."""
        early = self.criterion.matching_needs_predictions
        kept = [self._forward(model, one) if early else None for one in micro_batches]
        matches = []
        for one, predictions in zip(micro_batches, kept, strict=True):
            height, width = one.images.shape[2:]
            matches.append(self.criterion.match(one.targets, (height, width), predictions))
        return matches, kept

    def _totals(self, matches: Sequence[Any], images: int) -> dict[str, Tensor]:
        """What the losses divide by: counts over all ranks' slices. *Collective.*"""
        counts = count(self.criterion, matches, images)
        asked = in_parts(counts.new_full((1,), self.stop.asked))
        totals = self.comm.allreduce_sum(torch.cat((counts, asked), dim=1), "validation.normalisers").wait()
        if totals[0, -1] > 0:
            raise StoppedError("in validation")
        return by_name(self.criterion, totals[:, :-1])

    def _forward(self, model: Detector, batch: Batch) -> Any:
        with self.precision.autocast():
            return model(self.precision.images(batch))

    def _losses(self, predictions: Any, matched: Any, totals: dict[str, Tensor], images: int) -> Tensor:
        """(2, T + 1) parts of shares of a global batch's loss terms, each times its images; own images."""
        terms = self.criterion(predictions, matched, totals).terms.double()
        return in_parts(torch.cat((terms * totals[IMAGES], totals[IMAGES].new_full((1,), images))))

    def _found(self, model: Detector, predictions: Any, batch: Batch) -> Iterator[tuple[int, Detections]]:
        return in_original(model.detect(predictions, self.thresholds), batch)


class Scores:
    """What is found in a set's images against what is there; ``most`` detections an image are counted."""

    def __init__(self, annotations: Annotations, most: int) -> None:
        self._annotations = annotations
        self._classes = len(annotations.names)
        limits = (min(1, most), min(10, most), most)
        self._accumulator = DetectionAccumulator(self._classes, max_detections=limits)
        self._mistakes = MistakeCounter(self._classes)

    def add(self, index: int, found: Detections) -> None:
        """Add an image by its position in the set, with what was found, in pixels of the original."""
        truths, arrays = truths_of(self._annotations.records[index]), as_arrays(found)
        self._accumulator.add(index, truths, arrays)
        self._mistakes.add(index, truths, arrays)

    def state(self) -> tuple[Any, Any]:
        """For `merged`, of this rank's images."""
        return self._accumulator.state(), self._mistakes.state()

    def merged(self, states: Sequence[tuple[Any, Any]]) -> tuple[DetectionSummary, Mistakes]:
        """Of all ranks' images."""
        accumulators, mistakes = zip(*states, strict=True)
        merged = DetectionAccumulator.merged(self._classes, accumulators)
        return merged.summary(), Mistakes.merged(mistakes)


def in_original(found: Sequence[Detections], batch: Batch) -> Iterator[tuple[int, Detections]]:
    """Position in the data set and detections, in pixels of the original, of each image of a batch."""
    for index, letterbox, d in zip(batch.indices.tolist(), batch.letterboxes, found, strict=True):
        yield index, Detections(letterbox.to_original(d.boxes_xyxy), d.scores, d.classes)


def truths_of(record: Record) -> ImageTruths:
    """A record's boxes as the metrics take them."""
    return ImageTruths(
        xyxy_to_ltwh(record.boxes_xyxy.astype(np.float64)),
        record.classes,
        record.crowd,
        record.areas.astype(np.float64),
    )


def as_arrays(detections: Detections) -> ImageDetections:
    """Detections as the metrics take them."""
    return ImageDetections(
        xyxy_to_ltwh(detections.boxes_xyxy.double().cpu().numpy()),
        detections.scores.double().cpu().numpy(),
        detections.classes.cpu().numpy(),
    )
