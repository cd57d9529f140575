"""What a trainer asks of whatever scores its model after an epoch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from horovod_yolo.core.slices import Slices
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.models.detector import Detector


class Evaluator(Protocol):
    """Scores the model after an epoch."""

    @property
    def left_out(self) -> Collection[int]:
        """Positions of the images of the validation set that any rank has lost; the same on all."""

    def run(self, model: Detector) -> Evaluation:
        """The numbers of one pass over the validation set. *Collective.*"""

    def prepare(self) -> None:
        """Let the data workers begin with the next pass."""

    def share(self, slices: Slices) -> None:
        """Score other slices of each batch on this rank."""

    def leave_out(self, positions: Iterable[int]) -> None:
        """Do without these images from the next pass on; all ranks must."""

    def close(self) -> None:
        """End its data workers."""
