"""One optimizer step. The page to read twice.

A *window* is the run of global batches whose gradients add up to one step. Each batch has slices, with a
forward and a backward pass of their own, and a rank has some of them. Whatever the number of ranks, the sum
over the slices is the gradient of the window, because the loss divides by counts that were summed first.

A rank that runs out of memory in a step goes on without images: the others must not wait for it. Before the
optimizer all ranks know of it, undo what the step did, and do it again with half as many images in a pass.

The host gives a device its work ahead of time, so a step waits for no number from there. What it depends on
is known on the host (images, requests to stop, lacks of memory), or decides on the device (whether the
gradient is finite). The loss and the norm of the gradient arrive later.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_yolo.core.digest import digest
from horovod_yolo.core.errors import MemoryShortError, NonFiniteError
from horovod_yolo.core.memory import shortage
from horovod_yolo.core.precision import Precision
from horovod_yolo.core.slices import Slices
from horovod_yolo.core.transfer import Fetched
from horovod_yolo.core.types import Batch, Targets
from horovod_yolo.distributed.agreement import agree
from horovod_yolo.distributed.communicator import Communicator, GradientExchange
from horovod_yolo.distributed.rejoining import RejoiningSums
from horovod_yolo.distributed.sync_batchnorm import synchronise_batch_norm
from horovod_yolo.losses.criterion import Criterion
from horovod_yolo.models.detector import Detector
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.balance import Balance
from horovod_yolo.training.division import EarlyDivision, Share, division_of
from horovod_yolo.training.double_check import DoubleCheck
from horovod_yolo.training.optimizers import step_where, steps_where
from horovod_yolo.training.passes import Passes, Window, give_back, what_batch_norm_sees
from horovod_yolo.training.rank_times import RankTimes
from horovod_yolo.training.running_statistics import RunningStatistics
from horovod_yolo.training.scaling import scaled, scaled_size
from horovod_yolo.training.slice_digests import SliceDigests
from horovod_yolo.training.underway import LostImagesError, Step, Sums, start_sum

log = logging.getLogger(__name__)
LARGEST_GRADIENT_NORM = 10.0
_LOWER = "Lower --imgsz, choose a smaller model, or go on with --resume and a smaller --micro-batch"
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
        passes: Passes,
        slices: Slices | None = None,
        record: SliceDigests | None = None,
    ) -> None:
        """With ``sync_bn`` the model's batch norms are replaced by those of all ranks.

        ``slices`` are this rank's; by default each rank has one. ``record`` gets their gradients' digests.
        """
        self.record = record
        self.check: DoubleCheck | None = None  # of the next step
        self.teacher: Callable[[Batch, float], Targets] | None = None  # of scaled images
        self.digests = False  # of the weights, after each step
        self.model = model
        self._network: Callable[[Tensor], Any] = model  # that computes what the model does
        self.criterion = criterion
        self.optimizer = optimizer
        self.scaler = scaler
        self.skipped_in_a_row = 0
        self.exchange = exchange
        self.precision = precision
        self._comm = comm
        self._sync_bn = sync_bn
        self._stop = stop
        self._trained = model.trained
        self._division = division_of(criterion, exchange, self._trained, scaler)
        self._sums = RejoiningSums(comm)  # of a batch, before the gradients are complete
        if sync_bn:
            synchronise_batch_norm(model, self._sums)
        self.slices = Slices.even(comm.size, comm.rank, comm.size) if slices is None else slices
        self.balance: Balance | None = None  # is told what they take
        self.times: RankTimes | None = None  # where somebody watches
        self.passes = passes  # in which a slice goes through the network, as many on every rank
        self._statistics = RunningStatistics(model, passes.share * self.slices.count)
        self._lacks: list[str] = []  # memory on this rank, in the step under way
        self._totals: list[Mapping[str, Tensor]] = []  # normalisers of each batch, in the step under way
        self._state = [*model.parameters(), *model.buffers()]

    def learn_from(self, teacher: Callable[[Batch, float], Targets], criterion: Criterion[Any, Any]) -> None:
        """Let a teacher add to the targets, and the criterion, divided early, have losses of that."""
        self.teacher, self.criterion = teacher, criterion
        self._division = EarlyDivision(criterion)

    def use(self, network: Callable[[Tensor], Any], batch: Batch) -> None:
        """Let forward passes go through ``network``, which computes what the model does, from now on.

        Which loss reaches which parameter may not be seen in its graph: for that ``batch`` goes through the
        model as it is.
        """
        predictions = self._forward(batch, 1.0, tracks=False)
        self._division.look(predictions, self._matched(batch, 1.0, predictions))
        self._network = network

    def step(self, batches: Iterator[Batch], scales: Sequence[float]) -> Step:
        """Run one window. *Collective.*

        Args:
            batches: this rank's slices, in order; as many are taken as there are scales.
            scales: factor on the input's size for each global batch: all 1 without multi-scale.

        Raises:
            MemoryShortError: a rank lacks memory, also for half as many images a pass; on all ranks alike.
            LostImagesError: any rank's batches name lost images; on all ranks alike. But for the size of
                passes nothing has changed: make the window again, of batches that leave them out.
        """
        window, expected = Window(batches, scales), self.exchange.state_dict()
        sums, lack = self._gradients(window)
        passes = self.passes.count
        while lack is not None and self.passes.count == passes:
            self._halve_passes(lack)
            self.exchange.load_state_dict(expected)
            sums, lack = self._gradients(window)
        if lack is not None:
            raise MemoryShortError(f"{lack}, also with {self.passes.images} images in a pass. {_LOWER}")
        if sums.lost:
            self._undo()
            self.exchange.load_state_dict(expected)
            raise LostImagesError
        if self.check is not None and not sums.replaced:
            self._do_twice(self.check)
        norm = self._clip_gradients()
        numbers = Fetched(torch.cat((sums.losses, norm.double()[None])))
        with self.exchange.stepping():
            made = self._update(norm, numbers)
        self._statistics.move(sums.statistics, made)
        self.optimizer.zero_grad()
        weights = Fetched(digest(self._state)[None]) if self.digests else None
        of_slices = None
        if self.record is not None and self.record.recorded:
            shape = (len(window), self.slices.count, len(self.record.names))
            of_slices = (Fetched(self.record.of_all_ranks(self._comm)), shape)
        redone = self.passes.count != passes
        return Step(self, sums, numbers, made, redone, weights, of_slices)

    def lack_of_memory(self, batch: Batch, scale: float) -> str | None:
        """What a rank lacks to train on a batch in one pass, and which rank; None: nothing. *Collective.*

        It is tried with two passes, as the second finds the gradients of the first. Nothing is changed by it.
        """
        passes, self.passes = self.passes, Passes(len(batch))
        expected = self.exchange.state_dict()
        try:
            _, lack = self._gradients(Window(iter((batch, batch)), (scale, scale)))
        finally:
            self.passes = passes
            self.exchange.load_state_dict(expected)
        if lack is None:
            self._undo()
        return lack

    def _gradients(self, window: Window) -> tuple[Sums, str | None]:
        """Give the parameters the gradients of a window, summed over the ranks. *Collective.*

        Returns:
            Sums, and which memory was too small on which rank: then nothing is changed, and there are no
            gradients.
        """
        while True:
            sums, lacking, complete = self._tried(window)
            if complete and not lacking:
                return sums, None
            self._undo()
            if lacking:
                return sums, agree(self._comm, next(iter(self._lacks), None))

    def _tried(self, window: Window) -> tuple[Sums, bool, bool]:
        """The same; whether a rank lacked memory, and whether the gradients could be added up."""
        self._lacks.clear()
        self._statistics.begin()
        self._totals.clear()
        here = max(len(self.slices), 1)  # a rank without a slice has an empty one
        self.exchange.expect(
            len(window) * here, passes=self.passes.count, of_all=len(window) * self.slices.count
        )
        if self.record is not None:
            asked = None if self.check is None else self.check.at
            self.record.begin(len(window), self.slices, self.passes.count, asked)
        losses = torch.zeros(
            (2, len(self.criterion.terms)), dtype=torch.float64, device=self.precision.device
        )
        images = replaced = lost = 0
        pixels, begun = 0.0, time.perf_counter() - self._comm.wait_s
        for number, (batch, factor) in enumerate(window, start=1):
            self._statistics.begin_batch()
            losses += self._share(batch, factor, last=number == len(window))
            lost += len(batch.lost)
            if not self._lacks:
                images, replaced = images + len(batch), replaced + batch.replaced
                pixels += batch.images.numel() * factor**2
        self._statistics.restore()
        if self.balance is not None:
            self.balance.note(time.perf_counter() - self._comm.wait_s - begun, pixels)
        if self._lacks:
            self.exchange.abandon()
        seconds = self.balance.message() if self.balance is not None else []
        times = self.times.message(images) if self.times is not None else []
        told = [*seconds, *times, images, replaced, self._stop.asked, lost, len(self._lacks)]
        summing = start_sum(self._comm, losses, torch.tensor(told, dtype=torch.float64))
        complete = self.exchange.finish()  # the sum travels with the last gradients
        losses, (*heard, taken, others, stop, missed, lacking) = summing()
        seconds, times = heard[: len(seconds)], heard[len(seconds) :]
        statistics = self._statistics.summed()
        flags = stop > 0, missed > 0
        sums = Sums(losses, int(taken), int(others), *flags, tuple(seconds), times, statistics)
        return sums, lacking > 0, complete

    def _share(self, batch: Batch, scale: float, last: bool) -> Tensor:
        """`_forward_backward`, or this rank's part in the others' where it lacks memory. *Collective.*"""
        self._sums.begin()
        if not self._lacks:
            try:
                there = batch.to(self.precision.device, non_blocking=True)
                return self._forward_backward(there, scale, last)
            except Exception as error:
                lack = None if isinstance(error, self._comm.lost_errors) else shortage(error)
                if lack is None:
                    raise
                self._lacks.append(lack)
                traceback.clear_frames(error.__traceback__)  # which hold what was computed
            give_back(self.precision.device)
            self._sums.begin_again()
        nothing = batch.without_images().to(self.precision.device)
        return torch.zeros_like(self._forward_backward(nothing, scale, last, follows=True))

    def _undo(self) -> None:
        self.optimizer.zero_grad()
        give_back(self.precision.device)

    def _halve_passes(self, lack: str) -> None:
        again = f"{lack}: the step is done again, and the run goes on, with"
        if self.passes.together and isinstance(self._division, EarlyDivision):
            self.passes = replace(self.passes, together=0)
            log.info("%s one pass at a time in memory", again)
            return
        smaller = self.passes.halved()
        if smaller is None:
            raise MemoryShortError(f"{lack} for a single image. {_LOWER}")
        sees = what_batch_norm_sees(smaller, self._sync_bn)
        log.info("%s %d images in a pass instead of %d; %s", again, smaller.images, self.passes.images, sees)
        self.passes = smaller

    def _forward_backward(
        self, batch: Batch, scale: float = 1.0, last: bool = False, follows: bool = False
    ) -> Tensor:
        """This rank's share of a batch: (2, T) loss terms in parts, each times the global images.

        In the ``last`` of the window what batch norm saw leaves before the backward pass: the network has
        nothing else to do yet. Where it only ``follows`` the others no gradient is kept, and no hook is told.
        """
        terms, totals = self._division.through(
            Share(
                micro_batches=[one for part in batch.in_slices() for one in part.split(self.passes.count)],
                forward=lambda one, tracks: self._forward(one, scale, tracks),
                match=lambda one, predictions: self._matched(one, scale, predictions),
                sums=self._sums,
                before_last=lambda: self._statistics.start_sum(self._sums) if last else None,
                back=self._backward if not follows else self._nowhere,
                follows=follows,
                together=self.passes.together,
            )
        )
        self._training(True)
        self._totals.append(totals)
        return terms

    def _backward(self, total: Tensor) -> None:
        """In the last pass hooks start to send each gradient in here, as soon as it is complete."""
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]

    def _nowhere(self, total: Tensor) -> None:
        """The same without them."""
        torch.autograd.grad(total, self._trained, allow_unused=True)

    def _do_twice(self, check: DoubleCheck) -> None:
        """Raise `FaultyRankError` where two ranks differ about a slice. *Collective.*"""
        record = self.record
        assert record is not None
        check.require_same(
            record.names, lambda: record.row(*check.at), lambda batch: self._again(batch, check)
        )

    def _again(self, batch: Batch, check: DoubleCheck) -> list[int] | None:
        """The digests of a slice of the window, done here and now; None where it has not its images.

        The gradients of the step stay, and so does what batch norm tracks.
        """
        assert self.record is not None
        if batch.lost or batch.replaced:
            return None
        self._statistics.begin()
        try:
            return self.record.of(self._gradients_of(batch.to(self.precision.device), check))
        except Exception as error:
            if shortage(error) is None:
                raise
            log.warning("the slice is not done a second time in this step: %s", shortage(error))
            return None
        finally:
            self._statistics.restore()
            self._training(True)

    def _gradients_of(self, batch: Batch, check: DoubleCheck) -> list[Tensor | None]:
        """Those of all that is trained, of a slice by itself."""
        needed = self.criterion.matching_needs_predictions
        found: list[Tensor | None] = [None] * len(self._trained)
        for part in batch.split(self.passes.count):
            predictions = self._forward(part, check.scale, tracks=False)
            matched = self._matched(part, check.scale, predictions if needed else None)
            total = self._division.source(predictions, matched, self._totals[check.at[0]])
            more = torch.autograd.grad(self.scaler.scale(total), self._trained, allow_unused=True)
            found = [b if a is None else a if b is None else a + b for a, b in zip(found, more, strict=True)]
        return found

    @torch.no_grad()
    def _matched(self, batch: Batch, scale: float, predictions: Any) -> Any:
        size = scaled_size(batch, scale, max(self.model.strides))
        targets = batch.targets if self.teacher is None else self.teacher(batch, scale)
        return self.criterion.match(targets, size, predictions)

    def _forward(self, batch: Batch, scale: float, tracks: bool = True) -> Any:
        batch = scaled(batch, scale, max(self.model.strides))
        self._training(len(batch) > 0 or self._sync_bn)  # batch norm has no statistics of nothing
        with self.precision.autocast():
            predictions = self._network(self.precision.images(batch))
        if tracks and len(batch):
            self._statistics.add(len(batch))
        return predictions

    def _training(self, mode: bool) -> None:
        """Have the model in training or evaluation mode; to go through all modules for nothing takes time."""
        if self.model.training is not mode:
            self.model.train(mode)

    def _clip_gradients(self) -> Tensor:
        """() the norm that the gradients had. It is the same on every rank."""
        self.scaler.unscale_(self.optimizer)  # after the exchange: all ranks see the same inf
        return nn.utils.clip_grad_norm_(self._trained, LARGEST_GRADIENT_NORM)

    def _update(self, norm: Tensor, numbers: Fetched) -> bool | Tensor:
        """Step, or skip where the gradient is not finite. All ranks hold the same gradient, so all agree.

        Whether it was a step: () bool where only the device knows. With an optimizer that cannot leave it to
        the device the host waits, for the numbers that it wants anyway.
        """
        finite: bool | Tensor
        if steps_where(self.optimizer):
            finite = norm.isfinite()
            step_where(self.optimizer, finite)
        else:
            finite = math.isfinite(numbers.read()[-1])
            if finite:
                self.optimizer.step()
        self.scaler.update()  # knows from `unscale_` whether to lower the scale
        return finite

    def note(self, skipped: bool) -> None:
        """Count skips in a row.

        Raises:
            NonFiniteError: there are too many.
        """
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row > MOST_SKIPS_IN_A_ROW:
            raise NonFiniteError(
                f"gradients were infinite or NaN for {self.skipped_in_a_row} steps in a row; "
                "lower lr0 or warmup_bias_lr, or use --precision fp32 with --compression none"
            )
