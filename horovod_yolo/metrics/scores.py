"""What a pass over a validation set finds out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from horovod_yolo.metrics.coco_results import to_json
from horovod_yolo.metrics.mistakes import Mistakes
from horovod_yolo.metrics.summary import DetectionSummary


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one pass over a validation set, the same on every rank."""

    summary: DetectionSummary
    losses: Mapping[str, float]  # the loss terms by name: means over the images
    rect: bool = True  # whether inputs were rectangles or squares
    head: str = ""  # which of the model's heads detected, where it has several
    fitness_weights: tuple[float, float] = (0.1, 0.9)  # of mAP50 and mAP50-95
    mistakes: Mistakes | None = None

    @property
    def fitness(self) -> float:
        """How good the model is, in one number."""
        of_map50, of_map50_95 = self.fitness_weights
        return of_map50 * self.summary.map50 + of_map50_95 * self.summary.map50_95

    @property
    def inputs(self) -> str:
        """What the network was given, in words."""
        if self.rect:
            return (
                "inputs: rectangles, each batch the smallest in whole strides and half a stride more (--rect)"
            )
        return "inputs: squares (--no-rect)"


def metrics_of(evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
    """The numbers that checkpoints and results.json keep; the best epoch has the highest fitness."""
    summary = evaluation.summary
    return {
        **to_json(summary, names),
        "fitness": evaluation.fitness,
        "val_loss": dict(evaluation.losses),
        "rect": evaluation.rect,
        **({"head": evaluation.head} if evaluation.head else {}),
    }
