"""One optimizer step. The page to read twice.

A *window* is the run of global batches whose gradients add up to one step; a rank holds its slice of
each. Whatever the number of ranks, the sum of their gradients is the gradient of the window, because
the loss divides by counts that were summed over ranks first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from horovod_yolo.core.errors import NonFiniteError
from horovod_yolo.core.types import Batch, Predictions
from horovod_yolo.distributed.communicator import Communicator, GradientExchange
from horovod_yolo.losses.anchor_based import AnchorLoss
from horovod_yolo.models.head import Detector
from horovod_yolo.process.stop import StopRequest

LARGEST_GRADIENT_NORM = 10.0
MOST_SKIPS_IN_A_ROW = 25  # a gradient scaler that starts at 65536 may need a dozen to settle


@dataclass(frozen=True)
class StepResult:
    """Global values of one step."""

    box_loss: float
    obj_loss: float
    cls_loss: float
    images: int
    grad_norm: float
    skipped: bool
    stop: bool = False  # a rank was asked to stop; all see it in the same step
    replaced: int = 0  # of the images, those that stand for a lost one


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Number format of the forward pass."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last

    @property
    def of_weights(self) -> torch.dtype:
        """What the weights and the input are kept in: float32 under autocast too."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def images(self, batch: Batch) -> Tensor:
        """(B, 3, H, W) uint8 or scaled pixels -> the network's input in 0..1, on the device.

        Channels last: convolutions are up to a third faster so, on CPUs and on GPUs. The weights stay as
        they are, because Horovod and checkpoints want them contiguous.
        """
        images = batch.images.to(self.device, self.of_weights, non_blocking=True)
        return images.contiguous(memory_format=self.memory_format) / 255

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != self.of_weights)


class Stepper:
    """Turns windows of batches into optimizer steps."""

    def __init__(
        self,
        *,
        model: Detector,
        loss: AnchorLoss,
        optimizer: Optimizer,
        exchange: GradientExchange,
        scaler: torch.amp.GradScaler,
        precision: Precision,
        comm: Communicator,
        sync_bn: bool,
        stop: StopRequest,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.scaler = scaler
        self.skipped_in_a_row = 0
        self._exchange = exchange
        self._precision = precision
        self._comm = comm
        self._sync_bn = sync_bn
        self._stop = stop
        self.parts = 1  # in which a slice goes through the network, the same number on every rank
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def step(self, batches: Iterator[Batch], scales: Sequence[float]) -> StepResult:
        """Run one window. *Collective.*

        Args:
            batches: this rank's slices, in order; as many are taken as there are scales.
            scales: factor on the input's size for each global batch: all 1 without multi-scale.

        Raises:
            NonFiniteError: infinite or NaN gradients many times in a row, on all ranks alike.
        """
        self.model.train()
        self._exchange.expect(len(scales) * self.parts)
        sums = torch.zeros(5, dtype=torch.float64, device=self._precision.device)
        for scale in scales:
            batch = next(batches).to(self._precision.device, non_blocking=True)
            sums += self._forward_backward(_resized(batch, scale, max(self.model.strides)))
        grad_norm = self._finish_gradients()
        with self._exchange.stepping():
            skipped = self._update(grad_norm)
        self.optimizer.zero_grad()
        asked = sums.new_tensor([self._stop.asked])
        sums = self._comm.allreduce_sum(torch.cat((sums, asked)), "losses").wait()
        *losses, images, replaced, stop = sums.tolist()
        box, obj, cls = (loss / max(images, 1.0) for loss in losses)
        return StepResult(box, obj, cls, int(images), grad_norm, skipped, stop > 0, int(replaced))

    def _forward_backward(self, batch: Batch) -> Tensor:
        """This rank's share of a batch: (5,) box, obj, cls loss, each times the global images; own images;
        those of them that stand for a lost one.
        """
        height, width = batch.images.shape[2:]
        shapes = [(height // s, width // s) for s in self.model.strides]
        parts = batch.split(self.parts)
        matches = [self.loss.match(part.targets, shapes, self.model.anchors_px) for part in parts]
        counts = [self.loss.normalisers(m, len(part)) for m, part in zip(matches, parts, strict=True)]
        counting = self._comm.allreduce_sum(torch.stack(counts).sum(dim=0), "normalisers")
        totals: Tensor | None = None
        losses = []
        for part, matched in zip(parts, matches, strict=True):
            predictions = self._forward(part)
            totals = counting.wait() if totals is None else totals  # they travelled meanwhile
            loss = self.loss(predictions, matched, totals)
            # In the last part Horovod's hooks start to send each gradient in here, as soon as it is complete.
            self.scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.parts.double())
        self.model.train()
        assert totals is not None
        counted = totals.new_tensor([len(batch), batch.replaced])
        return torch.cat((torch.stack(losses).sum(dim=0) * totals[-1], counted))

    def _forward(self, batch: Batch) -> Predictions:
        self.model.train()
        if len(batch) == 0 and not self._sync_bn:
            self.model.eval()  # batch norm has no statistics of nothing; all gradients will be zero
        with self._precision.autocast():
            predictions: Predictions = self.model(self._precision.images(batch))
        return predictions

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


def _resized(batch: Batch, factor: float, stride: int) -> Batch:
    """The batch with its images scaled to a multiple of ``stride``; targets are relative and stay."""
    if factor == 1:
        return batch
    size = [max(round(side * factor / stride), 1) * stride for side in batch.images.shape[2:]]
    images = batch.images.float()
    images = F.interpolate(images, size, mode="bilinear") if len(batch) else images.new_zeros((0, 3, *size))
    return replace(batch, images=images)
