"""Small models without anchors, one for each kind of head, that can be asked for by name."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch

from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.families import zoo
from horovod_yolo.families.anchor_free.family import (
    V8,
    V11,
    V26,
    AnchorFree,
    AnchorFreeModelSpec,
    distance_head,
)
from horovod_yolo.families.anchor_free.head import HeadKind
from horovod_yolo.families.base import AS_NAMED, Variant
from horovod_yolo.losses.criterion import Criterion
from horovod_yolo.models.detector import Detector
from tests.helpers.tiny import STRIDES
from tests.helpers.tiny_zoo import SmallBackbone, SmallNeck

FEW_BINS = 4  # the branch of the sides is as wide as it has bins
KINDS = {
    "tiny8": replace(V8, bins=FEW_BINS),
    "tiny11": replace(V11, bins=FEW_BINS),
    "tiny26": V26,
}


def _spec(kind: HeadKind) -> AnchorFreeModelSpec:
    return AnchorFreeModelSpec(STRIDES, kind, 2, lambda: (SmallBackbone(), SmallNeck()))


class TinyFree(AnchorFree):
    """A family beside that of YOLOv8, with a model of each kind."""

    models = MappingProxyType({name: _spec(kind) for name, kind in KINDS.items()})

    def build(self, name: str, num_classes: int, variant: Variant = AS_NAMED) -> Detector:
        """Its first boxes are as small as the objects in small images, or hardly any cell would count."""
        model = super().build(name, num_classes, variant)
        head = distance_head(model)
        for branch in (head.cv2, *([head.one2one_cv2] if len(head.heads) > 1 else [])):
            for level in branch:
                bias = level.get_parameter("2.bias").data.view(4, -1)
                start = [1 - (bin - 1.0) ** 2 for bin in range(head.bins)] if head.bins > 1 else [1.0]
                bias.copy_(torch.tensor(start))
        return model


def criterion_of(model: Detector, epochs: int = 3) -> Criterion[Any, Any]:
    """The loss of a model with its family's hyperparameters."""
    config = settings_of({"data": "", "cfg": model.name, "epochs": epochs})
    return zoo.family_of(model.name).criterion(model, config)


def add_tiny_free(patch: pytest.MonkeyPatch) -> None:
    """Let ``--cfg tiny8``, ``tiny11`` and ``tiny26`` be models."""
    patch.setattr(zoo, "FAMILIES", (*zoo.FAMILIES, TinyFree()))
