"""What training and validation ask of a loss, whatever its family.

Every mean in a loss is over the *global* batch, whose sizes no rank knows alone. So it is computed in three
stages: `Criterion.match` finds what this rank's predictions answer for, `Criterion.counts` says how much that
is, the caller sums these over the ranks, and the loss divides by the sums. The ranks' losses and gradients
then add up to those of one process with the whole batch, whatever the split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from horovod_yolo.core.slices import in_parts, of_parts
from horovod_yolo.core.types import Targets

Predictions = TypeVar("Predictions")  # what the head of the family gives
Matches = TypeVar("Matches")  # what the family's matching gives
IMAGES = "images"  # the normaliser that every criterion has


@dataclass(frozen=True)
class Loss:
    """This rank's share of the loss. Summed over the ranks it is the value of the global batch."""

    total: Tensor  # () times the images of the global batch; call backward on it
    terms: Tensor  # (T,) in the order of `Criterion.terms`, detached; means, so not times the images


class Criterion(ABC, Generic[Predictions, Matches]):
    """The loss of a family. ``total`` need not be the sum of the terms: they are what people are shown."""

    terms: ClassVar[tuple[str, ...]]  # short names: of columns, curves and lines of progress
    taught: ClassVar[tuple[str, ...]] = ()  # of the terms, those that need a teacher: validation has none
    matching_needs_predictions: ClassVar[bool] = False  # if not, counts travel while the network computes
    divides_late: ClassVar[bool] = False  # whether it has `undivided`

    @property
    @abstractmethod
    def normalisers(self) -> tuple[str, ...]:
        """Names of what `counts` counts. The images are always counted beside them."""

    @abstractmethod
    def match(self, targets: Targets, size: tuple[int, int], predictions: Predictions | None) -> Matches:
        """What the predictions for some images of this rank answer for; runs without gradients.

        Args:
            targets: of these images, on the host; the matches are on the device of the head.
            size: (H, W) of the network's input in pixels.
            predictions: given where ``matching_needs_predictions``.
        """

    @abstractmethod
    def counts(self, matches: Matches) -> Tensor:
        """(K,) float64: what these matches add to each of the normalisers, on the device of the matches."""

    @abstractmethod
    def __call__(self, predictions: Predictions, matches: Matches, totals: Mapping[str, Tensor]) -> Loss:
        """This rank's share of the loss.

        It is connected to every prediction, even without a target and with B = 0, so that every rank has a
        gradient for every parameter. Computed in float32 (float64 if the predictions are).

        Args:
            predictions: of the head.
            matches: of these predictions.
            totals: () float64 for each of the normalisers and ``images``, summed over all ranks; not clamped.
        """

    def undivided(self, predictions: Predictions, matches: Matches) -> Mapping[str, Loss]:
        """The loss before its division, by the normaliser that each part of it is divided by, in their order.

        What `__call__` gives is the sum of the parts, each divided by its normaliser or by 1 if that is less;
        the total then times the images. No parameter gets gradients of two parts.
        """
        raise NotImplementedError

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Told before each of the ``epochs``, also of a resumed run, for losses that change with them.

        How many there are may be another number in each epoch: with ``--time``.
        """
        return


def count(criterion: Criterion[Predictions, Matches], matches: Sequence[Matches], images: int) -> Tensor:
    """(2, K + 1) the normalisers of a rank's micro-batches and its images, to be summed over ranks.

    They come in parts, so that the sum does not depend on who adds them up.
    """
    counts = torch.stack([in_parts(criterion.counts(matched)) for matched in matches]).sum(dim=0)
    return torch.cat((counts, in_parts(counts.new_full((1,), images))), dim=1)


def by_name(criterion: Criterion[Predictions, Matches], totals: Tensor) -> dict[str, Tensor]:
    """The inverse of `count`: each total under its name."""
    return dict(zip((*criterion.normalisers, IMAGES), of_parts(totals), strict=True))
