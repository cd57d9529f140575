"""Batch norm over the global batch, on CPUs and GPUs, over any `Communicator`.

Horovod's own ``hvd.SyncBatchNorm`` raises on CPU tensors and cannot take an empty batch. Here each
rank contributes its count, sum and sum of squares per channel in float64, so that neither the
number of ranks nor an empty slice changes the statistics beyond rounding.

Ioffe and Szegedy, "Batch normalization", 2015, algorithm 1; the backward pass is its derivative with
the means taken over all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from horovod_yolo.distributed.communicator import OF_BATCH_NORM, Sums
from horovod_yolo.models.batch_norm import BatchNorm2d, follows_batches, statistics, wide


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, comm: Sums, name: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = x.numel() // x.shape[1] if x.numel() else 0
        local = torch.zeros(2 * x.shape[1] + 1, dtype=torch.float64, device=x.device)
        if count:
            mean64, var64 = (value.double() for value in statistics(x))
            squares = (var64 + mean64.square()) * count
            local = torch.cat((mean64 * count, squares, local.new_full((1,), count)))
        total = comm.allreduce_sum(local, name).wait()
        n = total[-1].clamp(min=1)
        mean64, square64 = (total[:-1] / n).chunk(2)
        var64 = (square64 - mean64.square()).clamp(min=0)
        mean, var = mean64.to(weight), var64.to(weight)
        ctx.save_for_backward(x, weight, mean, var, n)
        ctx.comm, ctx.name, ctx.eps = comm, name, eps
        y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, var, n)
        return y, mean, var, n

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, n = ctx.saved_tensors
        if x.numel():  # (C,) each, over this rank's pixels; none of the gradient by the input
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad_y, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
            )
        else:
            grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        local = torch.cat((grad_bias, grad_weight)).double()
        total = ctx.comm.allreduce_sum(local, ctx.name + ".backward").wait()
        if not x.numel():
            return torch.zeros_like(x), grad_weight, grad_bias, None, None, None
        mean_grad, mean_grad_x_hat = (total / n).to(weight).chunk(2)
        inv_std = (var.double() + ctx.eps).rsqrt().to(weight)
        scale = weight * inv_std
        # scale (grad_y - mean_grad - x_hat mean_grad_x_hat), in two passes: the first is batch norm's kernel
        grad_x = F.batch_norm(
            wide(x),
            mean,
            torch.ones_like(var),
            weight=-scale * inv_std * mean_grad_x_hat,
            bias=-scale * mean_grad,
            training=False,
            eps=0.0,
        )
        grad_x.addcmul_(wide(grad_y), scale.view(1, -1, 1, 1))
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None


class SyncBatchNorm2d(BatchNorm2d):
    """`BatchNorm2d` whose training statistics are those of all ranks' images together."""

    def __init__(self, source: nn.BatchNorm2d, comm: Sums, name: str) -> None:
        super().__init__(source.num_features, source.eps, source.momentum)
        self.weight, self.bias = source.weight, source.bias
        self.running_mean, self.running_var = source.running_mean, source.running_var
        self.num_batches_tracked = source.num_batches_tracked
        self._comm = comm
        self._name = f"{OF_BATCH_NORM}{name}"

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same; *collective* in training mode."""
        if not self.training:
            return super().forward(input)
        y, mean, var, n = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps, self._comm, self._name
        )
        self.track(mean, var, n)
        result: Tensor = y
        return result


def synchronise_batch_norm(model: nn.Module, comm: Sums) -> None:
    """Replace every `BatchNorm2d` of ``model`` in place; parameters and buffers stay the same objects.

    Those that are fixed stay: they see no batch.
    """
    for parent_name, parent in list(model.named_modules()):
        for child_name, child in list(parent.named_children()):
            if follows_batches(child) and not isinstance(child, SyncBatchNorm2d):
                setattr(parent, child_name, SyncBatchNorm2d(child, comm, f"{parent_name}.{child_name}"))
