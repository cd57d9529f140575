"""The building blocks of the networks.

Parameter names inside a block (``conv``, ``bn``, ``cv1`` ...) and their order are those of published
checkpoints, which is what lets an importer pair the two one to one. Every block accepts B = 0 (in training
only if its batch norm does).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from horovod_yolo.models.batch_norm import BatchNorm2d
from horovod_yolo.models.convolution import Conv2d

# The published checkpoints were trained with these; other values would change what their statistics mean.
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.03


class NumberedLayers(nn.Module):
    """Modules that are rows of the published layer table.

    ``published`` gives each child's row in that table; children are made in the order of the rows.
    """

    published: Mapping[str, int]


class Backbone(NumberedLayers):
    """Images (B, 3, H, W) to feature maps of several strides, finest first."""


class Neck(NumberedLayers):
    """Joins the backbone's maps across scales; ``channels`` are those of its outputs, finest level first."""

    channels: tuple[int, ...]


class Conv(nn.Module):
    """Convolution, batch norm, SiLU: (B, c_in, H, W) -> (B, c_out, H / stride, W / stride).

    ``groups`` equal to ``c_in`` makes it depthwise. Without ``activation`` it ends after the batch norm.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        *,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        pad = kernel // 2 if padding is None else padding
        self.conv = Conv2d(c_in, c_out, kernel, stride, pad, groups=groups, bias=False)
        self.bn = BatchNorm2d(c_out, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y: Tensor = self.bn(self.conv(x))
        return F.silu(y) if self.activation else y


class Bottleneck(nn.Module):
    """``kernel`` x ``kernel``, then 3x3 convolution.

    Added to the input where ``shortcut`` is set and the widths agree.
    """

    def __init__(
        self, c_in: int, c_out: int, shortcut: bool = True, expansion: float = 0.5, kernel: int = 1
    ) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, hidden, kernel)
        self.cv2 = Conv(hidden, c_out, 3)
        self.add = shortcut and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H, W)."""
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C3(nn.Module):
    """Cross stage partial block: bottlenecks on one half of the channels, the other half passes by.

    Wang et al., "CSPNet: a new backbone that can enhance learning capability of CNN", 2020, in the form
    with three convolutions. ``kernel`` is that of the bottlenecks' first convolution.
    """

    def __init__(
        self, c_in: int, c_out: int, repeats: int = 1, shortcut: bool = True, kernel: int = 1
    ) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, hidden, 1)
        self.cv2 = Conv(c_in, hidden, 1)
        self.cv3 = Conv(2 * hidden, c_out, 1)
        bottlenecks = (Bottleneck(hidden, hidden, shortcut, 1.0, kernel) for _ in range(repeats))
        self.m = nn.Sequential(*bottlenecks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H, W)."""
        y: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))
        return y


class C2f(nn.Module):
    """Cross stage partial block with two convolutions, whose last sees what each of its inner blocks gave.

    CSPNet (Wang et al., 2020) in the manner of ELAN (Wang et al., "Designing network design strategies
    through gradient path analysis", 2022).
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        repeats: int,
        make_block: Callable[[int], nn.Module],
        expansion: float = 0.5,
    ) -> None:
        """``make_block`` gives an inner block that keeps the given number of channels."""
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, 2 * hidden, 1)
        self.cv2 = Conv((2 + repeats) * hidden, c_out, 1)
        self.m = nn.ModuleList(make_block(hidden) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H, W)."""
        parts = list(self.cv1(x).chunk(2, dim=1))
        for block in self.m:
            parts.append(block(parts[-1]))
        y: Tensor = self.cv2(torch.cat(parts, dim=1))
        return y


class SPP(nn.Module):
    """Spatial pyramid pooling: the map beside its maxima over windows of several sizes.

    He et al., "Spatial pyramid pooling in deep convolutional networks for visual recognition", 2014.
    """

    def __init__(self, c_in: int, c_out: int, kernels: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden, 1)
        self.cv2 = Conv(hidden * (len(kernels) + 1), c_out, 1)
        self.kernels = tuple(kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H, W)."""
        x = self.cv1(x)
        pooled = [F.max_pool2d(x, k, stride=1, padding=k // 2) for k in self.kernels]
        y: Tensor = self.cv2(torch.cat([x, *pooled], dim=1))
        return y


class SPPF(nn.Module):
    """SPP with windows k, 2k - 1 and 3k - 2, by three small poolings in a row: same result, less work.

    With ``residual`` (YOLO26) the input is added, and what is pooled was not activated.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 5, *, residual: bool = False) -> None:
        super().__init__()
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden, 1, activation=not residual)
        self.cv2 = Conv(hidden * 4, c_out, 1)
        self.kernel = kernel
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H, W)."""
        pyramid = [self.cv1(x)]
        for _ in range(3):
            pyramid.append(F.max_pool2d(pyramid[-1], self.kernel, stride=1, padding=self.kernel // 2))
        y: Tensor = self.cv2(torch.cat(pyramid, dim=1))
        return x + y if self.residual else y


def upsample(x: Tensor) -> Tensor:
    """(B, c, H, W) -> (B, c, 2H, 2W), nearest neighbour."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def concat(*maps: Tensor) -> Tensor:
    """Maps of one size side by side: (B, c_i, H, W) each -> (B, sum of c_i, H, W)."""
    return torch.cat(maps, dim=1)
