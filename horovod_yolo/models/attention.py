"""Attention over the cells of a map, as YOLO11 and YOLO26 have it at their coarsest stride."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from horovod_yolo.models.blocks import Conv

CHANNELS_OF_A_HEAD = 64


class Attention(nn.Module):
    """Each cell looks at all cells (Vaswani et al., "Attention is all you need", 2017).

    A depthwise convolution of the values stands in for a code of the position. The channels of ``qkv`` are
    ordered by head, and in a head by query, key and value.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // CHANNELS_OF_A_HEAD, 1)
        self.of_value = channels // self.heads
        self.of_key = self.of_value // 2
        self.qkv = Conv(channels, channels + 2 * self.heads * self.of_key, activation=False)
        self.proj = Conv(channels, channels, activation=False)
        self.pe = Conv(channels, channels, 3, groups=channels, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, H, W) -> (B, c, H, W)."""
        batch, channels, height, width = x.shape
        by_head = self.qkv(x).reshape(batch, self.heads, 2 * self.of_key + self.of_value, height * width)
        query, key, value = by_head.split((self.of_key, self.of_key, self.of_value), dim=2)
        # (B, heads, H * W queries, H * W keys). Scaled before the product, which half precision may not hold.
        similarity = (query * self.of_key**-0.5).transpose(2, 3) @ key
        seen = (value @ similarity.softmax(dim=3).transpose(2, 3)).reshape(batch, channels, height, width)
        y: Tensor = self.proj(seen + self.pe(value.reshape(batch, channels, height, width)))
        return y


class PSABlock(nn.Module):
    """Attention, then two 1x1 convolutions; both are added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = Attention(channels)
        self.ffn = nn.Sequential(Conv(channels, 2 * channels), Conv(2 * channels, channels, activation=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, H, W) -> (B, c, H, W)."""
        x = x + self.attn(x)
        y: Tensor = x + self.ffn(x)
        return y


class C2PSA(nn.Module):
    """Partial self-attention: one half of the channels passes by.

    Wang et al., "YOLOv10: real-time end-to-end object detection", 2024.
    """

    def __init__(self, channels: int, repeats: int) -> None:
        super().__init__()
        half = channels // 2
        self.cv1 = Conv(channels, 2 * half)
        self.cv2 = Conv(2 * half, channels)
        self.m = nn.Sequential(*(PSABlock(half) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, H, W) -> (B, c, H, W)."""
        aside, looked_at = self.cv1(x).chunk(2, dim=1)
        y: Tensor = self.cv2(torch.cat((aside, self.m(looked_at)), dim=1))
        return y
