"""The running statistics of batch norms: they move once a global batch, by what all its slices saw.

A forward pass normalises with its own mean and variance, and leaves them behind. Their mean over the passes,
weighted by images and summed over the ranks, is what the running statistics move towards. The sums do not
depend on their order, so all ranks have the same to the bit, and the same as any other number of ranks.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from horovod_yolo.core.slices import in_parts, of_parts
from horovod_yolo.distributed.communicator import Pending, Sums
from horovod_yolo.models.batch_norm import follows_batches


class RunningStatistics:
    """Those of a model, in a step."""

    def __init__(self, model: nn.Module, images: int) -> None:
        """``images`` are about those of a global batch: what is summed is weighted by a share of them."""
        self._norms: list[tuple[nn.BatchNorm2d, float]] = []
        self._tracked: list[Tensor] = []
        self._counts: list[Tensor] = []
        for norm in model.modules():
            if not follows_batches(norm):
                continue
            assert norm.momentum is not None and norm.num_batches_tracked is not None
            assert norm.running_mean is not None and norm.running_var is not None
            self._norms.append((norm, norm.momentum))
            self._tracked += [norm.running_mean, norm.running_var]
            self._counts.append(norm.num_batches_tracked)
        momenta = [[momentum] * 2 * norm.num_features for norm, momentum in self._norms]
        like = self._tracked[0] if self._tracked else torch.zeros(0)
        self._momenta = like.new_tensor([*chain.from_iterable(momenta)])
        self._share = 0.5 ** (images - 1).bit_length()  # a power of two: it rounds nothing
        self._pairs = [(live, [buffer.clone() for buffer in live]) for live in (self._tracked, self._counts)]
        self._batches: list[Tensor] = []
        self._summing: Pending

    @torch.no_grad()
    def begin(self) -> None:
        """A window begins. Until `restore` the buffers are those of the last pass."""
        for live, kept in self._pairs:
            torch._foreach_copy_(kept, live)
        for norm, _ in self._norms:
            norm.momentum = 1.0
        self._batches.clear()

    def begin_batch(self) -> None:
        """A global batch of the window begins."""
        shape = (2, len(self._momenta) + 1)
        self._batches.append(self._momenta.new_zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def add(self, images: int) -> None:
        """Take what the last forward pass saw, of so many images."""
        if not self._tracked:
            return
        seen = torch.cat([*self._tracked, self._tracked[0].new_ones(1)])
        self._batches[-1] += in_parts(seen.double() * (images * self._share))

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what the passes did."""
        for live, kept in self._pairs:
            torch._foreach_copy_(live, kept)
        for norm, momentum in self._norms:
            norm.momentum = momentum

    def start_sum(self, comm: Sums) -> None:
        """Sum over the ranks, when all passes of the window are there. *Collective.*"""
        self._summing = comm.allreduce_sum(torch.stack(self._batches), "running statistics")

    def summed(self) -> Tensor:
        """What comes of it. *Collective.*"""
        return self._summing.wait()

    @torch.no_grad()
    def move(self, total: Tensor, made: bool | Tensor) -> None:
        """Follow the batches of the window, where its step was ``made``; ``total`` is what was summed."""
        if made is False or not self._tracked:
            return
        before = torch.cat(self._tracked)
        now = before
        counted = torch.zeros(1, device=before.device)
        for batch in total:
            sums, share = torch.split(of_parts(batch), [len(self._momenta), 1])
            there = share > 0
            mean = (sums / torch.where(there, share, 1)).to(before)
            now = torch.where(there, now.lerp(mean, self._momenta), now)
            counted += there
        if isinstance(made, Tensor):
            now, counted = torch.where(made, now, before), counted * made
        pieces = torch.split(now, [buffer.numel() for buffer in self._tracked])
        torch._foreach_copy_(self._tracked, list(pieces))
        torch._foreach_add_(self._counts, [counted[0].to(torch.int64)] * len(self._counts))
