"""Batch norm with exact statistics, whatever the memory format.

PyTorch's own kernel for channels-last tensors on CPUs adds float32 values one after the other: over the
pixels of a batch its means and variances lose two to three digits, and the gradient of a whole network up to
several percent. Here they come from two passes whose sums are taken in a tree, which costs as much.

Ioffe and Szegedy, "Batch normalization", 2015, algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from typing_extensions import Self


def wide(x: Tensor) -> Tensor:
    """At least float32: half precision cannot hold a sum over pixels."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) -> mean and biased variance of each channel, (C,) each, at least float32."""
    x, pixels = wide(x), (0, 2, 3)
    if x.device.type != "cpu":  # exact there in one pass, by Welford's method
        var, mean = torch.var_mean(x, pixels, correction=0)
        return mean, var
    mean = x.mean(pixels)
    return mean, (x - mean.view(1, -1, 1, 1)).square_().mean(pixels)


def follows_batches(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether it is a batch norm whose running statistics move in training."""
    return isinstance(module, nn.BatchNorm2d) and not (isinstance(module, BatchNorm2d) and module.fixed)


class _Normalise(torch.autograd.Function):
    """Only the statistics are ours: the rest is done by PyTorch's kernels, which are exact."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = statistics(x)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inv_std = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_y, x, weight, None, None, mean, inv_std, True, ctx.eps, [True, True, True]
        )
        return grad_x, grad_weight, grad_bias, None


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, exact on CPUs in training too.

    Where it is ``fixed``, it is in evaluation mode for good, whatever mode the model is in.
    """

    fixed = False

    def fix(self) -> None:
        """Normalise with the running statistics from now on, and move them no more."""
        self.fixed = True
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; where it is fixed, evaluation mode."""
        return super().train(mode and not self.fixed)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        values = input.numel() // self.num_features
        compiled = torch.compiler.is_compiling()  # to code that adds as exactly
        if not self.training or input.device.type != "cpu" or compiled or values < 2:
            return super().forward(input)  # which refuses to train on a single value
        y, mean, var = _Normalise.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        self.track(mean, var, torch.tensor(values, dtype=torch.float64))
        result: Tensor = y
        return result

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor, values: Tensor) -> None:
        """Move the running statistics towards those of ``values`` values a channel; ``var`` is biased."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        unbiased = var * (values / (values - 1).clamp(min=1)).to(var)
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)
