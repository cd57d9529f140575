"""Convolutions by PyTorch's fast kernels for CPUs, whatever the number of threads and images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, which on a CPU leaves kernels of one weight to oneDNN too.

    With one thread and under 16 images PyTorch takes an older way for them, which is up to half as fast
    forward and back. One weight has no neighbours for a dilation to move apart, and what is dilated goes to
    oneDNN.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H', W')."""
        plain = self.kernel_size != (1, 1) or input.device.type != "cpu" or input.dtype == torch.float64
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if plain or tracing:  # files say what is meant
            return super().forward(input)
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, (2, 2), self.groups)
