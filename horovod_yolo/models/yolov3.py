"""YOLOv3, YOLOv3-SPP and YOLOv3-tiny (Redmon and Farhadi, "YOLOv3: an incremental improvement", 2018).

The layer tables are those under which PyTorch checkpoints are published. In the comments: the row of the
published layer table, then channels and stride of the output.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from horovod_yolo.models.blocks import SPP, Backbone, Bottleneck, Conv, Neck, concat, upsample


def _bottlenecks(channels: int, repeats: int, kernel: int, shortcut: bool = True) -> nn.Sequential:
    blocks = (Bottleneck(channels, channels, shortcut, kernel=kernel) for _ in range(repeats))
    return nn.Sequential(*blocks)


class Darknet53(Backbone):
    """Images (B, 3, H, W) -> maps at strides 8, 16, 32.

    ``kernel`` is that of the first convolution of each residual block.
    """

    published: Mapping[str, int] = {
        "stem": 0, "down1": 1, "stage1": 2, "down2": 3, "stage2": 4, "down3": 5, "stage3": 6,
        "down4": 7, "stage4": 8, "down5": 9, "stage5": 10,
    }  # fmt: skip

    def __init__(self, kernel: int = 1) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3)  # 0: 32, stride 1
        self.down1 = Conv(32, 64, 3, 2)  # 1: 64, stride 2
        self.stage1 = Bottleneck(64, 64, kernel=kernel)  # 2
        self.down2 = Conv(64, 128, 3, 2)  # 3: 128, stride 4
        self.stage2 = _bottlenecks(128, 2, kernel)  # 4
        self.down3 = Conv(128, 256, 3, 2)  # 5: 256, stride 8
        self.stage3 = _bottlenecks(256, 8, kernel)  # 6: P3
        self.down4 = Conv(256, 512, 3, 2)  # 7: 512, stride 16
        self.stage4 = _bottlenecks(512, 8, kernel)  # 8: P4
        self.down5 = Conv(512, 1024, 3, 2)  # 9: 1024, stride 32
        self.stage5 = _bottlenecks(1024, 4, kernel)  # 10: P5

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images -> (P3, P4, P5)."""
        x = self.stage2(self.down2(self.stage1(self.down1(self.stem(images)))))
        p3 = self.stage3(self.down3(x))
        p4 = self.stage4(self.down4(p3))
        p5 = self.stage5(self.down5(p4))
        return p3, p4, p5


class NeckV3(Neck):
    """Feature pyramid: coarse maps are carried up to the fine ones. With ``spp``, P5 is pooled first."""

    published: Mapping[str, int] = {
        "first5": 11, "squeeze5": 12, "mix5": 13, "lateral5": 14, "out5": 15, "reduce5": 16,
        "first4": 19, "mix4": 20, "lateral4": 21, "out4": 22, "reduce4": 23, "first3": 26, "out3": 27,
    }  # fmt: skip

    def __init__(self, spp: bool = False, kernel: int = 1) -> None:
        super().__init__()
        self.first5 = Bottleneck(1024, 1024, False, kernel=kernel)  # 11: 1024, stride 32
        self.squeeze5 = SPP(1024, 512) if spp else Conv(1024, 512)  # 12: 512
        self.mix5 = Conv(512, 1024, 3)  # 13: 1024
        self.lateral5 = Conv(1024, 512)  # 14: 512
        self.out5 = Conv(512, 1024, 3)  # 15: 1024, stride 32, out
        self.reduce5 = Conv(512, 256)  # 16: 256, stride 32, from 14
        self.first4 = Bottleneck(
            256 + 512, 512, False, kernel=kernel
        )  # 17 upsample, 18 beside P4, 19: 512, stride 16
        self.mix4 = Bottleneck(512, 512, False, kernel=kernel)  # 20: 512
        self.lateral4 = Conv(512, 256)  # 21: 256
        self.out4 = Conv(256, 512, 3)  # 22: 512, stride 16, out
        self.reduce4 = Conv(256, 128)  # 23: 128, stride 16, from 21
        self.first3 = Bottleneck(
            128 + 256, 256, False, kernel=kernel
        )  # 24 upsample, 25 beside P3, 26: 256, stride 8
        self.out3 = _bottlenecks(256, 2, kernel, False)  # 27: 256, stride 8, out
        self.channels = (256, 512, 1024)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(P3, P4, P5) -> the same three, the finer ones with the context of the coarser."""
        p3, p4, p5 = maps
        lateral5 = self.lateral5(self.mix5(self.squeeze5(self.first5(p5))))
        lateral4 = self.lateral4(self.mix4(self.first4(concat(upsample(self.reduce5(lateral5)), p4))))
        out3 = self.out3(self.first3(concat(upsample(self.reduce4(lateral4)), p3)))
        return out3, self.out4(lateral4), self.out5(lateral5)


class BackboneTiny(Backbone):
    """Images (B, 3, H, W) -> maps at strides 16 and 32. Pooling, not strided convolution, halves the maps."""

    published: Mapping[str, int] = {
        "conv0": 0, "conv1": 2, "conv2": 4, "conv3": 6, "conv4": 8, "conv5": 10, "conv6": 13,
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = Conv(3, 16, 3)  # 0: 16, stride 1; 1 pool
        self.conv1 = Conv(16, 32, 3)  # 2: 32, stride 2; 3 pool
        self.conv2 = Conv(32, 64, 3)  # 4: 64, stride 4; 5 pool
        self.conv3 = Conv(64, 128, 3)  # 6: 128, stride 8; 7 pool
        self.conv4 = Conv(128, 256, 3)  # 8: 256, stride 16, P4; 9 pool
        self.conv5 = Conv(256, 512, 3)  # 10: 512, stride 32; 11 pad, 12 pool at stride 1
        self.conv6 = Conv(512, 1024, 3)  # 13: 1024, stride 32, P5

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images -> (P4, P5)."""
        x = F.max_pool2d(self.conv0(images), 2)
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        x = F.max_pool2d(self.conv3(x), 2)
        p4 = self.conv4(x)
        x = self.conv5(F.max_pool2d(p4, 2))
        # Zeros at the right and the bottom keep the size of a 2x2 pooling at stride 1.
        p5 = self.conv6(F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1))
        return p4, p5


class NeckTiny(Neck):
    """P5 is carried up to P4."""

    published: Mapping[str, int] = {"lateral5": 14, "out5": 15, "reduce5": 16, "out4": 19}

    def __init__(self) -> None:
        super().__init__()
        self.lateral5 = Conv(1024, 256)  # 14: 256, stride 32
        self.out5 = Conv(256, 512, 3)  # 15: 512, stride 32, out
        self.reduce5 = Conv(256, 128)  # 16: 128, stride 32, from 14
        self.out4 = Conv(128 + 256, 256, 3)  # 17 upsample, 18 beside P4, 19: 256, stride 16, out
        self.channels = (256, 512)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(P4, P5) -> the same two, P4 with the context of P5."""
        p4, p5 = maps
        lateral5 = self.lateral5(p5)
        out4 = self.out4(concat(upsample(self.reduce5(lateral5)), p4))
        return out4, self.out5(lateral5)
