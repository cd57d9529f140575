"""One optimizer step. The page to read twice.

A *window* is the run of global batches whose gradients add up to one step; a rank holds its slice of
each. Whatever the number of ranks, the sum of their gradients is the gradient of the window, because
the loss divides by counts that were summed over ranks first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from horovod_yolo.core.errors import NonFiniteError
from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Batch
from horovod_yolo.distributed.communicator import Communicator, GradientExchange
from horovod_yolo.losses.criterion import IMAGES, Criterion, by_name, count
from horovod_yolo.models.detector import Detector
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.events import StepResult

LARGEST_GRADIENT_NORM = 10.0
MOST_SKIPS_IN_A_ROW = 25  # a gradient scaler that starts at 65536 may need a dozen to settle


class Stepper:
    """Turns windows of batches into optimizer steps."""

    def __init__(
        self,
        *,
        model: Detector,
        criterion: Criterion[Any, Any],
        optimizer: Optimizer,
        exchange: GradientExchange,
        scaler: torch.amp.GradScaler,
        precision: Precision,
        comm: Communicator,
        sync_bn: bool,
        stop: StopRequest,
        micro_batches: int = 1,
    ) -> None:
        """``micro_batches``: in which a slice goes through the network, as many on every rank."""
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.scaler = scaler
        self.skipped_in_a_row = 0
        self._exchange = exchange
        self.precision = precision
        self._comm = comm
        self._sync_bn = sync_bn
        self._stop = stop
        self.micro_batches = micro_batches
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def step(self, batches: Iterator[Batch], scales: Sequence[float]) -> StepResult:
        """Run one window. *Collective.*

        Args:
            batches: this rank's slices, in order; as many are taken as there are scales.
            scales: factor on the input's size for each global batch: all 1 without multi-scale.

        Raises:
            NonFiniteError: infinite or NaN gradients many times in a row, on all ranks alike.
        """
        self._exchange.expect(len(scales) * self.micro_batches)
        terms = self.criterion.terms
        sums = torch.zeros(len(terms) + 2, dtype=torch.float64, device=self.precision.device)
        for scale in scales:
            batch = next(batches).to(self.precision.device, non_blocking=True)
            sums += self._forward_backward(_resized(batch, scale, max(self.model.strides)))
        grad_norm = self._finish_gradients()
        with self._exchange.stepping():
            skipped = self._update(grad_norm)
        self.optimizer.zero_grad()
        asked = sums.new_tensor([self._stop.asked])
        sums = self._comm.allreduce_sum(torch.cat((sums, asked)), "losses").wait()
        *losses, images, replaced, stop = sums.tolist()
        means = {term: loss / max(images, 1.0) for term, loss in zip(terms, losses, strict=True)}
        return StepResult(means, int(images), grad_norm, skipped, stop > 0, int(replaced))

    def _forward_backward(self, batch: Batch) -> Tensor:
        """This rank's share of a batch: (T + 2,) loss terms, each times the global images; own images; those
        of them that stand for a lost one.
        """
        micro_batches = batch.split(self.micro_batches)
        matches, kept = self._match(micro_batches)
        counting = self._comm.allreduce_sum(count(self.criterion, matches, len(batch)), "normalisers")
        totals: dict[str, Tensor] = {}
        terms = []
        for micro_batch, matched, predictions in zip(micro_batches, matches, kept, strict=True):
            if predictions is None:
                predictions = self._forward(micro_batch)
            totals = totals or by_name(self.criterion, counting.wait())  # they travelled meanwhile
            loss = self.criterion(predictions, matched, totals)
            # In the last one Horovod's hooks start to send each gradient in here, as soon as it is complete.
            self.scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
            terms.append(loss.terms.double())
        self.model.train()
        counted = totals[IMAGES].new_tensor([len(batch), batch.replaced])
        return torch.cat((torch.stack(terms).sum(dim=0) * totals[IMAGES], counted))

    def _match(self, micro_batches: Sequence[Batch]) -> tuple[list[Any], list[Any]]:
        """The matches of each micro-batch, and its predictions where they were made for that and can be kept.

        The normalisers of all micro-batches must be known before the first of their losses. Where matching
        needs predictions, keeping those of more than one would take the memory that splitting is to save:
        then they are made without a graph here, and once more for the loss.
        """
        if not self.criterion.matching_needs_predictions:
            return [self._matched(one, None) for one in micro_batches], [None] * len(micro_batches)
        if len(micro_batches) == 1:
            predictions = self._forward(micro_batches[0])
            return [self._matched(micro_batches[0], predictions)], [predictions]
        with torch.no_grad(), _buffers_kept(self.model):
            matches = [self._matched(one, self._forward(one)) for one in micro_batches]
        return matches, [None] * len(micro_batches)

    @torch.no_grad()
    def _matched(self, batch: Batch, predictions: Any) -> Any:
        height, width = batch.images.shape[2:]
        return self.criterion.match(batch.targets, (height, width), predictions)

    def _forward(self, batch: Batch) -> Any:
        self.model.train()
        if len(batch) == 0 and not self._sync_bn:
            self.model.eval()  # batch norm has no statistics of nothing; all gradients will be zero
        with self.precision.autocast():
            return self.model(self.precision.images(batch))

    def _finish_gradients(self) -> float:
        """Wait for the ranks' sum, then clip. The norm is the same on every rank."""
        self._exchange.finish()
        self.scaler.unscale_(self.optimizer)  # after the exchange: all ranks see the same inf
        norm = nn.utils.clip_grad_norm_(self._trained, LARGEST_GRADIENT_NORM)
        return float(norm)

    def _update(self, grad_norm: float) -> bool:
        """Step, or skip where the gradient is not finite. All ranks hold the same gradient, so all agree."""
        finite = math.isfinite(grad_norm)
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()  # knows from `unscale_` whether to lower the scale
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row > MOST_SKIPS_IN_A_ROW:
            raise NonFiniteError(
                f"gradients were infinite or NaN for {self.skipped_in_a_row} steps in a row; "
                "lower lr0 or warmup_bias_lr, or use --precision fp32 with --compression none"
            )
        return not finite


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what happens inside to buffers, such as batch norm's running statistics."""
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, kept in zip(model.buffers(), before, strict=True):
        buffer.copy_(kept)


def _resized(batch: Batch, factor: float, stride: int) -> Batch:
    """The batch with its images scaled to a multiple of ``stride``; targets are relative and stay."""
    if factor == 1:
        return batch
    size = [max(round(side * factor / stride), 1) * stride for side in batch.images.shape[2:]]
    images = batch.images.float()
    images = F.interpolate(images, size, mode="bilinear") if len(batch) else images.new_zeros((0, 3, *size))
    return replace(batch, images=images)
