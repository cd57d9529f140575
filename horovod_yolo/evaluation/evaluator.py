"""Validation over all ranks: each scores its slices, the matches are merged, the AP is over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from horovod_yolo.assembly.datasets import require_images
from horovod_yolo.core.boxes import xyxy_to_ltwh
from horovod_yolo.core.errors import StoppedError
from horovod_yolo.core.types import Batch, Detections
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.loader import Loader
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.losses.anchor_based import AnchorLoss
from horovod_yolo.losses.assign import LevelMatch
from horovod_yolo.metrics.accumulator import DetectionAccumulator
from horovod_yolo.metrics.matching import ImageDetections, ImageTruths
from horovod_yolo.metrics.summary import DetectionSummary
from horovod_yolo.models.decode import decode, non_max_suppression
from horovod_yolo.models.head import Detector
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.step import Precision


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one pass over a validation set, the same on every rank."""

    summary: DetectionSummary
    box_loss: float
    obj_loss: float
    cls_loss: float


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What a pass over a validation set needs besides the model."""

    annotations: Annotations
    loader: Loader  # of this rank's slices, in a fixed order
    loss: AnchorLoss
    comm: Communicator
    precision: Precision
    conf_threshold: float = 0.001
    iou_threshold: float = 0.6
    max_detections: int = 300
    stop: StopRequest = field(default_factory=StopRequest)
    parts: int = 1  # in which a slice is scored: more of them need less memory

    @torch.no_grad()
    def run(self, model: Detector, collected: dict[int, Detections] | None = None) -> Evaluation:
        """Score a model. *Collective.* Images that cannot be read any more are left out.

        Args:
            model: weights equal on all ranks; left in evaluation mode.
            collected: where given, gets this rank's detections in original pixels by image.

        Raises:
            StoppedError: a rank was asked to stop; on all ranks in the same batch.
            UserError: too many images are lost, on all ranks alike.
        """
        model.eval()
        accumulator = DetectionAccumulator(len(self.annotations.names))
        losses = torch.zeros(4, dtype=torch.float64, device=self.precision.device)
        for batch in self.loader.epoch(0):
            parts = [part for part in batch.split(self.parts) if len(part)] or [batch]
            matches = [self._match(model, part) for part in parts]
            totals = self._totals(parts, matches)
            for part, matched in zip(parts, matches, strict=True):
                predictions = self._forward(model, part)
                losses += self._losses(predictions, matched, totals, len(part))
                for index, found in self._found(model, predictions, part):
                    accumulator.add(index, truths_of(self.annotations.records[index]), as_arrays(found))
                    if collected is not None:
                        collected[index] = found
        summary = self._merged(accumulator)
        box, obj, cls, images = self.comm.allreduce_sum(losses, "validation.losses").wait().tolist()
        lost = len(self.annotations) - int(images)
        require_images(
            self.comm, lost, len(self.annotations), self.loader.lost.values(), self.annotations.root
        )
        images = max(images, 1.0)
        return Evaluation(summary, box / images, obj / images, cls / images)

    def _match(self, model: Detector, part: Batch) -> list[LevelMatch]:
        height, width = part.images.shape[2:]
        shapes = [(height // stride, width // stride) for stride in model.strides]
        return self.loss.match(part.targets.to(self.precision.device), shapes, model.anchors_px)

    def _totals(self, parts: Sequence[Batch], matches: Sequence[list[LevelMatch]]) -> Tensor:
        """What the losses divide by: counts over all ranks' slices. *Collective.*"""
        counts = [self.loss.normalisers(m, len(part)) for m, part in zip(matches, parts, strict=True)]
        asked = counts[0].new_tensor([self.stop.asked])
        counted = torch.cat((torch.stack(counts).sum(dim=0), asked))
        totals = self.comm.allreduce_sum(counted, "validation.normalisers").wait()
        if totals[-1] > 0:
            raise StoppedError("in validation")
        return totals[:-1]

    def _forward(self, model: Detector, part: Batch) -> list[Tensor]:
        with self.precision.autocast():
            predictions = model(self.precision.images(part))
        return [level.float() for level in predictions]

    def _losses(
        self, predictions: list[Tensor], matched: list[LevelMatch], totals: Tensor, images: int
    ) -> Tensor:
        """(4,) box, obj, cls share of a global batch, each times its images; own images."""
        parts = self.loss(predictions, matched, totals).parts
        return torch.cat((parts.double() * totals[-1], totals.new_tensor([images])))

    def _found(
        self, model: Detector, predictions: list[Tensor], part: Batch
    ) -> Iterator[tuple[int, Detections]]:
        """Position in the data set and detections, in original pixels, of each image."""
        decoded = decode(predictions, model.anchors_px, model.strides)
        found = non_max_suppression(decoded, self.conf_threshold, self.iou_threshold, self.max_detections)
        for index, letterbox, d in zip(part.indices.tolist(), part.letterboxes, found, strict=True):
            yield index, Detections(letterbox.to_original(d.boxes_xyxy), d.scores, d.classes)

    def _merged(self, accumulator: DetectionAccumulator) -> DetectionSummary:
        states = self.comm.allgather_object(accumulator.state())
        return DetectionAccumulator.merged(len(self.annotations.names), states).summary()


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
