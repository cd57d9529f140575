"""A model of a few thousand parameters that can be asked for by name, for whole runs in milliseconds."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from torch import Tensor

from horovod_yolo.models import zoo
from horovod_yolo.models.blocks import Conv, Neck, Part
from tests.helpers.tiny import ANCHORS_PX, STRIDES

NAME = "tiny"
CHANNELS = 8


class _Body(Part):
    published = MappingProxyType({"fine": 0})

    def __init__(self) -> None:
        super().__init__()
        self.fine = Conv(3, CHANNELS, kernel=STRIDES[0], stride=STRIDES[0], padding=0)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.fine(images)
        return x


class _Neck(Neck):
    published = MappingProxyType({"coarse": 1})
    channels = (CHANNELS, CHANNELS)

    def __init__(self) -> None:
        super().__init__()
        self.coarse = Conv(CHANNELS, CHANNELS, kernel=2, stride=2, padding=0)

    def forward(self, fine: Tensor) -> list[Tensor]:
        return [fine, self.coarse(fine)]


def add_tiny(patch: pytest.MonkeyPatch) -> None:
    """Let ``--cfg tiny`` be a model."""
    spec = zoo.ModelSpec(NAME, STRIDES, ANCHORS_PX, 2, lambda: (_Body(), _Neck()))
    patch.setattr(zoo, "MODELS", MappingProxyType({**zoo.MODELS, NAME: spec}))
