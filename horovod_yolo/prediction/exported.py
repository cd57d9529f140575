"""An exported file as what maps inputs to detections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Decoded, Detections, Floats
from horovod_yolo.export.about import About
from horovod_yolo.export.running import Runner
from horovod_yolo.models.suppression import Thresholds, best_of_each_place, non_max_suppression
from horovod_yolo.prediction.network import wanted

COLUMNS = 6  # of a detection that the file has suppressed itself: corners, score, class


@dataclass(frozen=True)
class ExportedFinder:
    """A file with what counts as a detection.

    Attributes:
        runner: the file.
        about: what it says of itself, or what the user says of it.
        thresholds: what counts; where the file suppresses, its own count too.
        classes: numbers of those that count; empty: all.
        path: of the file, for messages.
    """

    runner: Runner
    about: About
    thresholds: Thresholds
    classes: tuple[int, ...] = ()
    path: str = ""

    @property
    def stride(self) -> int:
        """The sides of an input are multiples of it, pixels."""
        return self.about.stride

    def __call__(self, inputs: NDArray[np.uint8]) -> list[Detections]:
        """(B, H, W, 3) RGB -> B results, best score first, boxes in pixels of the input.

        Raises:
            UserError: the file cannot be computed, or gives something else than boxes.
        """
        found: list[Detections] = []
        for images in self._portions(inputs):
            found += self._found(self.runner(images), len(images))
        return found[: len(inputs)]

    def _portions(self, inputs: NDArray[np.uint8]) -> Iterator[Floats]:
        """Inputs of as many images as the file takes at once; the last is filled up with black ones."""
        size = self.runner.sides[0] or max(1, len(inputs))
        for first in range(0, len(inputs), size):
            images = inputs[first : first + size].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
            missing = [(0, (self.runner.sides[0] or len(images)) - len(images)), (0, 0), (0, 0), (0, 0)]
            yield np.pad(images, missing)

    def _found(self, outputs: tuple[Floats, ...], images: int) -> list[Detections]:
        self._require_form(outputs, images)
        if len(outputs) == 1:
            return [self._of_rows(torch.from_numpy(rows)) for rows in outputs[0]]
        decoded = Decoded(*map(torch.from_numpy, outputs))
        select = best_of_each_place if self.about.finds_once else non_max_suppression
        return select(wanted(decoded, self.classes), self.thresholds)

    def _of_rows(self, rows: torch.Tensor) -> Detections:
        """(T, 6) of one image, best first."""
        score, number = rows[:, 4], rows[:, 5].long()
        counts = (score > self.thresholds.confidence) & rows.isfinite().all(dim=1)
        counts &= (number >= 0) & (number < len(self.about.names))
        if self.classes:
            counts &= torch.isin(number, torch.tensor(self.classes))
        kept = rows[counts][: self.thresholds.most]
        return Detections(kept[:, :4], kept[:, 4], kept[:, 5].long())

    def _require_form(self, outputs: tuple[Floats, ...], images: int) -> None:
        shapes, classes = [one.shape for one in outputs], len(self.about.names)
        if len(shapes) == 1:
            fits = len(shapes[0]) == 3 and shapes[0][::2] == (images, COLUMNS)
        else:
            fits = len(shapes) == 2 and all(len(shape) == 3 for shape in shapes)
            fits = fits and shapes[0][::2] == (images, 4) and shapes[1] == (images, shapes[0][1], classes)
        if not fits or any(one.dtype != np.float32 for one in outputs):
            raise UserError(
                f"its outputs are {', '.join(map(str, shapes))}: no boxes and scores of {classes} classes",
                where=self.path,
                fix="use a file that horovod-yolo export wrote",
            )
