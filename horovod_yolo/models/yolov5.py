"""YOLOv5 (layer table of releases 6.0 to 7.0): CSP-Darknet backbone and path-aggregation neck.

Five sizes differ in width and depth only. P5 networks predict at strides 8, 16 and 32, P6 networks at 64 as
well. In the comments: the row of the published layer table, then channels at width 1 and stride of the
output. "x 9" is the number of bottlenecks at depth 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from horovod_yolo.models.blocks import C3, SPPF, Backbone, Conv, Neck, concat, upsample


@dataclass(frozen=True)
class Size:
    """How a size of the family scales the layer table."""

    depth: float
    width: float

    def channels(self, at_width_one: int) -> int:
        """Channels, rounded up to a multiple of 8."""
        return math.ceil(at_width_one * self.width / 8) * 8

    def repeats(self, at_depth_one: int) -> int:
        """Bottlenecks in a C3, at least one."""
        return max(round(at_depth_one * self.depth), 1)


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "n": Size(depth=0.33, width=0.25),
        "s": Size(depth=0.33, width=0.50),
        "m": Size(depth=0.67, width=0.75),
        "l": Size(depth=1.00, width=1.00),
        "x": Size(depth=1.33, width=1.25),
    }
)


class BackboneP5(Backbone):
    """Images (B, 3, H, W) -> maps at strides 8, 16, 32."""

    published: Mapping[str, int] = {
        "stem": 0, "down2": 1, "stage2": 2, "down3": 3, "stage3": 4,
        "down4": 5, "stage4": 6, "down5": 7, "stage5": 8, "pool": 9,
    }  # fmt: skip

    def __init__(self, size: Size) -> None:
        super().__init__()
        c, n = size.channels, size.repeats
        self.stem = Conv(3, c(64), 6, 2, 2)  # 0: 64, stride 2
        self.down2 = Conv(c(64), c(128), 3, 2)  # 1: 128, stride 4
        self.stage2 = C3(c(128), c(128), n(3))  # 2: x 3
        self.down3 = Conv(c(128), c(256), 3, 2)  # 3: 256, stride 8
        self.stage3 = C3(c(256), c(256), n(6))  # 4: x 6, P3
        self.down4 = Conv(c(256), c(512), 3, 2)  # 5: 512, stride 16
        self.stage4 = C3(c(512), c(512), n(9))  # 6: x 9, P4
        self.down5 = Conv(c(512), c(1024), 3, 2)  # 7: 1024, stride 32
        self.stage5 = C3(c(1024), c(1024), n(3))  # 8: x 3
        self.pool = SPPF(c(1024), c(1024))  # 9: P5

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images -> (P3, P4, P5)."""
        p3 = self.stage3(self.down3(self.stage2(self.down2(self.stem(images)))))
        p4 = self.stage4(self.down4(p3))
        p5 = self.pool(self.stage5(self.down5(p4)))
        return p3, p4, p5


class NeckP5(Neck):
    """Coarse maps are carried up to the fine ones, then the fine ones back down (PANet, Liu et al., 2018)."""

    published: Mapping[str, int] = {
        "reduce5": 10, "up4": 13, "reduce4": 14, "up3": 17,
        "down4": 18, "out4": 20, "down5": 21, "out5": 23,
    }  # fmt: skip

    def __init__(self, size: Size) -> None:
        super().__init__()
        c, n = size.channels, size.repeats(3)
        self.reduce5 = Conv(c(1024), c(512))  # 10: 512, stride 32
        self.up4 = C3(c(512) + c(512), c(512), n, False)  # 11 upsample, 12 beside P4, 13: 512, stride 16
        self.reduce4 = Conv(c(512), c(256))  # 14: 256, stride 16
        self.up3 = C3(c(256) + c(256), c(256), n, False)  # 15 upsample, 16 beside P3, 17: 256, stride 8, out
        self.down4 = Conv(c(256), c(256), 3, 2)  # 18: 256, stride 16
        self.out4 = C3(c(256) + c(256), c(512), n, False)  # 19 beside 14, 20: 512, stride 16, out
        self.down5 = Conv(c(512), c(512), 3, 2)  # 21: 512, stride 32
        self.out5 = C3(c(512) + c(512), c(1024), n, False)  # 22 beside 10, 23: 1024, stride 32, out
        self.channels = (c(256), c(512), c(1024))

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(P3, P4, P5) -> the same three, each with the context of the others."""
        p3, p4, p5 = maps
        lateral5 = self.reduce5(p5)
        lateral4 = self.reduce4(self.up4(concat(upsample(lateral5), p4)))
        out3 = self.up3(concat(upsample(lateral4), p3))
        out4 = self.out4(concat(self.down4(out3), lateral4))
        out5 = self.out5(concat(self.down5(out4), lateral5))
        return out3, out4, out5


class BackboneP6(Backbone):
    """Images (B, 3, H, W) -> maps at strides 8, 16, 32, 64."""

    published: Mapping[str, int] = {
        "stem": 0, "down2": 1, "stage2": 2, "down3": 3, "stage3": 4, "down4": 5, "stage4": 6,
        "down5": 7, "stage5": 8, "down6": 9, "stage6": 10, "pool": 11,
    }  # fmt: skip

    def __init__(self, size: Size) -> None:
        super().__init__()
        c, n = size.channels, size.repeats
        self.stem = Conv(3, c(64), 6, 2, 2)  # 0: 64, stride 2
        self.down2 = Conv(c(64), c(128), 3, 2)  # 1: 128, stride 4
        self.stage2 = C3(c(128), c(128), n(3))  # 2: x 3
        self.down3 = Conv(c(128), c(256), 3, 2)  # 3: 256, stride 8
        self.stage3 = C3(c(256), c(256), n(6))  # 4: x 6, P3
        self.down4 = Conv(c(256), c(512), 3, 2)  # 5: 512, stride 16
        self.stage4 = C3(c(512), c(512), n(9))  # 6: x 9, P4
        self.down5 = Conv(c(512), c(768), 3, 2)  # 7: 768, stride 32
        self.stage5 = C3(c(768), c(768), n(3))  # 8: x 3, P5
        self.down6 = Conv(c(768), c(1024), 3, 2)  # 9: 1024, stride 64
        self.stage6 = C3(c(1024), c(1024), n(3))  # 10: x 3
        self.pool = SPPF(c(1024), c(1024))  # 11: P6

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images -> (P3, P4, P5, P6)."""
        p3 = self.stage3(self.down3(self.stage2(self.down2(self.stem(images)))))
        p4 = self.stage4(self.down4(p3))
        p5 = self.stage5(self.down5(p4))
        p6 = self.pool(self.stage6(self.down6(p5)))
        return p3, p4, p5, p6


class NeckP6(Neck):
    """The neck of the P5 networks with one level more."""

    published: Mapping[str, int] = {
        "reduce6": 12, "up5": 15, "reduce5": 16, "up4": 19, "reduce4": 20, "up3": 23,
        "down4": 24, "out4": 26, "down5": 27, "out5": 29, "down6": 30, "out6": 32,
    }  # fmt: skip

    def __init__(self, size: Size) -> None:
        super().__init__()
        c, n = size.channels, size.repeats(3)
        self.reduce6 = Conv(c(1024), c(768))  # 12: 768, stride 64
        self.up5 = C3(c(768) + c(768), c(768), n, False)  # 13 upsample, 14 beside P5, 15: 768, stride 32
        self.reduce5 = Conv(c(768), c(512))  # 16: 512, stride 32
        self.up4 = C3(c(512) + c(512), c(512), n, False)  # 17 upsample, 18 beside P4, 19: 512, stride 16
        self.reduce4 = Conv(c(512), c(256))  # 20: 256, stride 16
        self.up3 = C3(c(256) + c(256), c(256), n, False)  # 21 upsample, 22 beside P3, 23: 256, stride 8, out
        self.down4 = Conv(c(256), c(256), 3, 2)  # 24: 256, stride 16
        self.out4 = C3(c(256) + c(256), c(512), n, False)  # 25 beside 20, 26: 512, stride 16, out
        self.down5 = Conv(c(512), c(512), 3, 2)  # 27: 512, stride 32
        self.out5 = C3(c(512) + c(512), c(768), n, False)  # 28 beside 16, 29: 768, stride 32, out
        self.down6 = Conv(c(768), c(768), 3, 2)  # 30: 768, stride 64
        self.out6 = C3(c(768) + c(768), c(1024), n, False)  # 31 beside 12, 32: 1024, stride 64, out
        self.channels = (c(256), c(512), c(768), c(1024))

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(P3, P4, P5, P6) -> the same four, each with the context of the others."""
        p3, p4, p5, p6 = maps
        lateral6 = self.reduce6(p6)
        lateral5 = self.reduce5(self.up5(concat(upsample(lateral6), p5)))
        lateral4 = self.reduce4(self.up4(concat(upsample(lateral5), p4)))
        out3 = self.up3(concat(upsample(lateral4), p3))
        out4 = self.out4(concat(self.down4(out3), lateral4))
        out5 = self.out5(concat(self.down5(out4), lateral5))
        out6 = self.out6(concat(self.down6(out5), lateral6))
        return out3, out4, out5, out6
