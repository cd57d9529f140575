"""Learning rate, momentum and accumulation as pure functions of the batch number.

Nothing here has state, so a resumed run needs none: the batch number says it all. The curves are
YOLOv5's: linear or cosine decay by epoch, a linear warm-up by batch in which the biases start at
a higher rate and the accumulation grows from one batch to the nominal 64 images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEAST_WARMUP_BATCHES = 100


class Window(NamedTuple):
    """The batches of one epoch whose gradients add up to one optimizer step."""

    first_batch: int
    batches: int


class Rates(NamedTuple):
    """What the optimizer's groups get for a step."""

    lr: float
    bias_lr: float
    momentum: float  # of SGD, warmed up
    beta1: float  # of Adam and AdamW, the same from the first step on


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The plan of a whole run."""

    epochs: int
    batches_per_epoch: int
    accumulate: int
    lr0: float
    lrf: float
    cosine: bool
    momentum: float
    warmup_epochs: float
    warmup_momentum: float
    warmup_bias_lr: float
    least_warmup_batches: int = LEAST_WARMUP_BATCHES
    warms_up_in_last_epoch: bool = True

    @property
    def warmup_batches(self) -> int:
        """Batches of warm-up: as many epochs as it says, but not fewer than ``least_warmup_batches``.

        None where it is switched off, or is not for the last epoch and there is no other.
        """
        epochs = self.warmup_epochs
        if not self.warms_up_in_last_epoch:
            epochs = min(epochs, self.epochs - 1)
        return max(round(epochs * self.batches_per_epoch), self.least_warmup_batches) if epochs > 0 else 0

    def decay(self, epoch: int) -> float:
        """Factor on the learning rate in an epoch: 1 at the start, ``lrf`` after the last."""
        done = epoch / self.epochs
        if self.cosine:
            return (1 - math.cos(done * math.pi)) / 2 * (self.lrf - 1) + 1
        return (1 - done) * (1 - self.lrf) + self.lrf

    def rates(self, epoch: int, batch: int) -> Rates:
        """Rates for a step whose last batch is ``batch`` of ``epoch``."""
        lr = self.lr0 * self.decay(epoch)
        number = epoch * self.batches_per_epoch + batch
        if number > self.warmup_batches or self.warmup_batches == 0:
            return Rates(lr, lr, self.momentum, self.momentum)
        warm = number / self.warmup_batches
        return Rates(
            lr=lr * warm,
            bias_lr=self.warmup_bias_lr + (lr - self.warmup_bias_lr) * warm,
            momentum=self.warmup_momentum + (self.momentum - self.warmup_momentum) * warm,
            beta1=self.momentum,
        )

    def windows(self, epoch: int, first_batch: int = 0) -> Iterator[Window]:
        """The steps of an epoch from a batch that starts one. None reaches into the next epoch."""
        batch = first_batch
        while batch < self.batches_per_epoch:
            count = min(self._accumulate_at(epoch, batch), self.batches_per_epoch - batch)
            yield Window(batch, count)
            batch += count

    def _accumulate_at(self, epoch: int, batch: int) -> int:
        number = epoch * self.batches_per_epoch + batch
        if number >= self.warmup_batches:
            return self.accumulate
        return max(1, round(float(np.interp(number, [0, self.warmup_batches], [1, self.accumulate]))))
