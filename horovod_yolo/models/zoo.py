"""The models by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType

from horovod_yolo.core.errors import UserError
from horovod_yolo.models.blocks import Neck, Part
from horovod_yolo.models.head import AnchorHead, AnchorsPx, Detector
from horovod_yolo.models.yolov3 import BackboneTiny, Darknet53, NeckTiny, NeckV3
from horovod_yolo.models.yolov5 import BackboneP5, BackboneP6, NeckP5, NeckP6, Size

# Default anchors, fitted to COCO: at 640 pixels for P5, at 1280 for P6, at 416 for tiny.
ANCHORS_P5: AnchorsPx = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
ANCHORS_P6: AnchorsPx = (
    ((19, 27), (44, 40), (38, 94)),
    ((96, 68), (86, 152), (180, 137)),
    ((140, 301), (303, 264), (238, 542)),
    ((436, 615), (739, 380), (925, 792)),
)
ANCHORS_TINY: AnchorsPx = (
    ((10, 14), (23, 27), (37, 58)),
    ((81, 82), (135, 169), (344, 319)),
)

SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "n": Size(depth=0.33, width=0.25),
        "s": Size(depth=0.33, width=0.50),
        "m": Size(depth=0.67, width=0.75),
        "l": Size(depth=1.00, width=1.00),
        "x": Size(depth=1.33, width=1.25),
    }
)


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to build a model: its body, where it predicts, and from which anchors."""

    name: str
    strides: tuple[int, ...]
    anchors_px: AnchorsPx
    head_layer: int  # row of the head in the published layer table
    make_body: Callable[[], tuple[Part, Neck]]


def _p5(letter: str, size: Size) -> ModelSpec:
    return ModelSpec(f"yolov5{letter}", (8, 16, 32), ANCHORS_P5, 24, lambda: (BackboneP5(size), NeckP5(size)))


def _p6(letter: str, size: Size) -> ModelSpec:
    return ModelSpec(
        f"yolov5{letter}6", (8, 16, 32, 64), ANCHORS_P6, 33, lambda: (BackboneP6(size), NeckP6(size))
    )


_SPECS = (
    *(_p5(letter, size) for letter, size in SIZES.items()),
    *(_p6(letter, size) for letter, size in SIZES.items()),
    ModelSpec("yolov3", (8, 16, 32), ANCHORS_P5, 28, lambda: (Darknet53(), NeckV3())),
    ModelSpec("yolov3-spp", (8, 16, 32), ANCHORS_P5, 28, lambda: (Darknet53(), NeckV3(spp=True))),
    ModelSpec("yolov3-tiny", (16, 32), ANCHORS_TINY, 20, lambda: (BackboneTiny(), NeckTiny())),
)
MODELS: Mapping[str, ModelSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def find_model(name: str) -> ModelSpec:
    """The model of this name. ``models/yolov5s.yaml``, as YOLOv5's users write it, means ``yolov5s``.

    Raises
    ------
    UserError
        There is no such model; the nearest name is given.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    key = path.stem if path.suffix == ".yaml" else name
    if key not in MODELS:
        near = difflib.get_close_matches(key.lower(), MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown model {name!r}", where="--cfg", fix=f"{hint}known: {', '.join(MODELS)}")
    return MODELS[key]


def build_model(name: str, num_classes: int, anchors: AnchorsPx | None = None) -> Detector:
    """A new model with weights drawn from torch's global generator (same seed, same weights).

    ``anchors`` are (width, height) in pixels, finest level first; None means the model's own.

    Raises
    ------
    UserError
        Unknown name, no class, or anchors that do not fit the model.
    """
    spec = find_model(name)
    if num_classes < 1:
        raise UserError(f"{num_classes} classes", where=spec.name, fix="a detector needs at least one class")
    backbone, neck = spec.make_body()
    head = AnchorHead(
        neck.channels,
        num_classes,
        spec.anchors_px if anchors is None else anchors,
        spec.strides,
        spec.head_layer,
    )
    return Detector(spec.name, backbone, neck, head)
