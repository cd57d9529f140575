"""A step that is made, or on its way on a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from horovod_yolo.core.slices import of_parts
from horovod_yolo.core.transfer import Fetched
from horovod_yolo.core.types import Ints
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.training.events import StepResult

if TYPE_CHECKING:
    from horovod_yolo.training.step import Stepper


class LostImagesError(Exception):
    """A rank has lost images that others may still have."""


@dataclass(frozen=True)
class Sums:
    """Of a window, over ranks and images."""

    losses: Tensor  # (T,) float64 the loss terms
    images: int
    replaced: int  # of them, those that stand for a lost one
    stop: bool  # whether any rank is asked to
    lost: bool  # whether any rank has met images that are lost
    seconds: tuple[float, ...]  # that a slice takes each rank; see `Balance`
    of_ranks: Sequence[float]  # what their time went into; see `RankTimes`
    statistics: Tensor  # what batch norm saw; see `RunningStatistics`


class Step:
    """A step that is made, or on its way on a device. What the host knows of it, and later its numbers."""

    def __init__(
        self,
        stepper: Stepper,
        sums: Sums,
        numbers: Fetched,
        made: bool | Tensor,
        redone: bool,
        weights: Fetched | None = None,
        of_slices: tuple[Fetched, tuple[int, int, int]] | None = None,
    ) -> None:
        """``numbers`` are the losses and the norm of the gradient, ``weights`` the digest of the model.

        ``of_slices`` are the digests of the slices' gradients, and their shape.

        ``made`` is whether the weights have moved: () bool where only the device knows.
        """
        self.images, self.replaced, self.stop, self.redone = sums.images, sums.replaced, sums.stop, redone
        self.seconds = sums.seconds
        self.ranks = stepper.times.heard(sums.of_ranks) if stepper.times is not None else ()
        self.made = made
        self._stepper = stepper
        self._numbers, self._weights, self._of_slices = numbers, weights, of_slices

    def result(self) -> StepResult:
        """All of it, when the device has come so far; to be called once, in the order of the steps.

        Raises:
            NonFiniteError: infinite or NaN gradients many times in a row, on all ranks alike.
        """
        *losses, norm = self._numbers.read()
        terms = self._stepper.criterion.terms
        means = {term: loss / max(self.images, 1.0) for term, loss in zip(terms, losses, strict=True)}
        skipped = not math.isfinite(norm)
        self._stepper.note(skipped)
        weights = int(self._weights.read()[0]) if self._weights else None
        of_slices: Ints | None = None
        if self._of_slices is not None:
            fetched, shape = self._of_slices
            of_slices = np.array(fetched.read(), np.int64).reshape(shape)
        return StepResult(
            *(means, self.images, norm, skipped, self.stop, self.replaced, self.redone, weights, of_slices),
            ranks=self.ranks,
        )


def start_sum(comm: Communicator, losses: Tensor, told: Tensor) -> Callable[[], tuple[Tensor, list[float]]]:
    """Start to sum over the ranks what is on the device, and what the host tells. *Collective.*

    The host's numbers travel by themselves: to wait for the other hosts is not to wait for the devices.

    Args:
        comm: the ranks.
        losses: (2, T) float64 loss terms in parts.
        told: (N,) float64 of the host.

    Returns:
        What waits for both sums, and gives (T,) loss terms and the host's numbers.
    """
    if losses.device.type == "cpu":
        together = comm.allreduce_sum(torch.cat((losses.flatten(), told)), "losses")

        def both() -> tuple[Tensor, list[float]]:
            of_losses, of_told = torch.split(together.wait(), [losses.numel(), len(told)])
            return of_parts(of_losses.view(2, -1)), of_told.tolist()

        return both
    of_devices = comm.allreduce_sum(losses, "losses")
    of_hosts = comm.allreduce_sum(told, "told")
    return lambda: (of_parts(of_devices.wait()), of_hosts.wait().tolist())
