"""A model of a few thousand parameters that can be asked for by name, for whole runs in milliseconds."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from torch import Tensor

from horovod_yolo.families import zoo
from horovod_yolo.families.anchor_based.family import AnchorBased, AnchorModelSpec
from horovod_yolo.models.blocks import Backbone, Conv, Neck
from tests.helpers.tiny import ANCHORS_PX, STRIDES

NAME = "tiny"
CHANNELS = 8


class SmallBackbone(Backbone):
    """A convolution with batch norm: one map."""

    published = MappingProxyType({"fine": 0})

    def __init__(self) -> None:
        super().__init__()
        self.fine = Conv(3, CHANNELS, kernel=STRIDES[0], stride=STRIDES[0], padding=0)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.fine(images)
        return x


class SmallNeck(Neck):
    """The map, and one of half its size."""

    published = MappingProxyType({"coarse": 1})
    channels = (CHANNELS, CHANNELS)

    def __init__(self) -> None:
        super().__init__()
        self.coarse = Conv(CHANNELS, CHANNELS, kernel=2, stride=2, padding=0)

    def forward(self, fine: Tensor) -> list[Tensor]:
        return [fine, self.coarse(fine)]


class Tiny(AnchorBased):
    """A family beside that of YOLOv5, with one model."""

    models = MappingProxyType(
        {NAME: AnchorModelSpec(STRIDES, ANCHORS_PX, 2, lambda: (SmallBackbone(), SmallNeck()))}
    )


def add_tiny(patch: pytest.MonkeyPatch) -> None:
    """Let ``--cfg tiny`` be a model."""
    patch.setattr(zoo, "FAMILIES", (*zoo.FAMILIES, Tiny()))
