"""The layer tables of YOLO11 and YOLO26 (Jocher and Qiu, 2024; Jocher et al., 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from horovod_yolo.models.attention import C2PSA, PSABlock
from horovod_yolo.models.blocks import C3, SPPF, Bottleneck, C2f
from horovod_yolo.models.layer_table import UP, LayerTable, Row, Scale, cat, down

SCALES: Mapping[str, Scale] = MappingProxyType(
    {
        "n": Scale(depth=0.50, width=0.25, most_channels=1024),
        "s": Scale(depth=0.50, width=0.50, most_channels=1024),
        "m": Scale(depth=0.50, width=1.00, most_channels=512, large=True),
        "l": Scale(depth=1.00, width=1.00, most_channels=512, large=True),
        "x": Scale(depth=1.00, width=1.50, most_channels=512, large=True),
    }
)


def _bottleneck(hidden: int) -> nn.Module:
    return Bottleneck(hidden, hidden, kernel=3)


def _csp(hidden: int) -> nn.Module:
    return C3(hidden, hidden, repeats=2, kernel=3)


def _attentive(hidden: int) -> nn.Module:
    return nn.Sequential(_bottleneck(hidden), PSABlock(hidden))


def _c3k2(channels: int, *, plain: bool = False, expansion: float = 0.5) -> Row:
    """Two blocks at depth 1. ``plain``: bottlenecks on the small sizes."""

    def make(c_in: int, c_out: int, scale: Scale) -> nn.Module:
        inner = _bottleneck if plain and not scale.large else _csp
        return C2f(c_in, c_out, scale.repeats(2), inner, expansion)

    return Row(channels, make)


def _table(*, of_26: bool) -> LayerTable:
    attentive = Row(1024, lambda c_in, c_out, _: C2f(c_in, c_out, 1, _attentive))  # at any depth
    return LayerTable(
        backbone=(
            down(64),  # 0, stride 2
            down(128),  # 1, stride 4
            _c3k2(256, plain=True, expansion=0.25),  # 2
            down(256),  # 3, stride 8
            _c3k2(512, plain=True, expansion=0.25),  # 4: P3
            down(512),  # 5, stride 16
            _c3k2(512),  # 6: P4
            down(1024),  # 7, stride 32
            _c3k2(1024),  # 8
            Row(1024, lambda c_in, c_out, _: SPPF(c_in, c_out, residual=of_26)),  # 9
            Row(1024, lambda c_in, _, scale: C2PSA(c_in, scale.repeats(2))),  # 10: P5
        ),
        neck=(
            UP,  # 11, stride 16
            cat(11, 6),  # 12
            _c3k2(512, plain=not of_26),  # 13
            UP,  # 14, stride 8
            cat(14, 4),  # 15
            _c3k2(256, plain=not of_26),  # 16: out
            down(256),  # 17, stride 16
            cat(17, 13),  # 18
            _c3k2(512, plain=not of_26),  # 19: out
            down(512),  # 20, stride 32
            cat(20, 10),  # 21
            attentive if of_26 else _c3k2(1024),  # 22: out
        ),
        outputs=(16, 19, 22),
    )


YOLO11 = _table(of_26=False)
YOLO26 = _table(of_26=True)
