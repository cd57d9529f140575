"""YOLOv8's layer table (Jocher et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from horovod_yolo.models.blocks import SPPF, Bottleneck, C2f
from horovod_yolo.models.layer_table import UP, LayerTable, Row, Scale, cat, down

SCALES: Mapping[str, Scale] = MappingProxyType(
    {
        "n": Scale(depth=0.33, width=0.25, most_channels=1024),
        "s": Scale(depth=0.33, width=0.50, most_channels=1024),
        "m": Scale(depth=0.67, width=0.75, most_channels=768),
        "l": Scale(depth=1.00, width=1.00, most_channels=512),
        "x": Scale(depth=1.00, width=1.25, most_channels=512),
    }
)


def _c2f(channels: int, repeats: int, shortcut: bool) -> Row:
    def inner(hidden: int) -> nn.Module:
        return Bottleneck(hidden, hidden, shortcut, expansion=1.0, kernel=3)

    return Row(channels, lambda c_in, c_out, scale: C2f(c_in, c_out, scale.repeats(repeats), inner))


YOLOV8 = LayerTable(
    backbone=(
        down(64),  # 0, stride 2
        down(128),  # 1, stride 4
        _c2f(128, 3, True),  # 2
        down(256),  # 3, stride 8
        _c2f(256, 6, True),  # 4: P3
        down(512),  # 5, stride 16
        _c2f(512, 6, True),  # 6: P4
        down(1024),  # 7, stride 32
        _c2f(1024, 3, True),  # 8
        Row(1024, lambda c_in, c_out, _: SPPF(c_in, c_out)),  # 9: P5
    ),
    neck=(
        UP,  # 10, stride 16
        cat(10, 6),  # 11
        _c2f(512, 3, False),  # 12
        UP,  # 13, stride 8
        cat(13, 4),  # 14
        _c2f(256, 3, False),  # 15: out
        down(256),  # 16, stride 16
        cat(16, 12),  # 17
        _c2f(512, 3, False),  # 18: out
        down(512),  # 19, stride 32
        cat(19, 9),  # 20
        _c2f(1024, 3, False),  # 21: out
    ),
    outputs=(15, 18, 21),
)
