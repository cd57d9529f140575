"""The models of the family, their default anchors, and the fit of anchors to the data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.families.anchor_based.anchors import check_anchors
from horovod_yolo.families.anchor_based.head import AnchorHead, AnchorsPx
from horovod_yolo.families.anchor_based.recipe import RECIPE, AnchorBasedHyp
from horovod_yolo.families.base import AS_NAMED, Family, ModelSpec, Recognised, Shapes, Variant
from horovod_yolo.losses.anchor_based import AnchorCriterion, LossWeights, scale_weights
from horovod_yolo.losses.distillation import TeacherGains
from horovod_yolo.models.blocks import Backbone, Neck
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.yolov3 import BackboneTiny, Darknet53, NeckTiny, NeckV3
from horovod_yolo.models.yolov5 import SIZES, BackboneP5, BackboneP6, NeckP5, NeckP6, Size

log = logging.getLogger(__name__)
PER_LEVEL = "anchors_a_level"  # of a variant
MOST_PER_LEVEL = 32

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


@dataclass(frozen=True)
class AnchorModelSpec(ModelSpec):
    """What it takes to build a model: its body, where it predicts, and from which anchors."""

    anchors_px: AnchorsPx
    head_layer: int  # row of the head in the published layer table
    make_body: Callable[[], tuple[Backbone, Neck]]


def _p5(size: Size) -> AnchorModelSpec:
    return AnchorModelSpec((8, 16, 32), ANCHORS_P5, 24, lambda: (BackboneP5(size), NeckP5(size)))


def _p6(size: Size) -> AnchorModelSpec:
    return AnchorModelSpec((8, 16, 32, 64), ANCHORS_P6, 33, lambda: (BackboneP6(size), NeckP6(size)))


class AnchorBased(Family):
    """YOLOv5 and YOLOv3."""

    name = "anchor_based"
    recipe = RECIPE
    models: Mapping[str, AnchorModelSpec] = MappingProxyType(
        {
            **{f"yolov5{letter}": _p5(size) for letter, size in SIZES.items()},
            **{f"yolov5{letter}6": _p6(size) for letter, size in SIZES.items()},
            "yolov3": AnchorModelSpec((8, 16, 32), ANCHORS_P5, 28, lambda: (Darknet53(), NeckV3())),
            "yolov3-spp": AnchorModelSpec(
                (8, 16, 32), ANCHORS_P5, 28, lambda: (Darknet53(), NeckV3(spp=True))
            ),
            "yolov3-tiny": AnchorModelSpec((16, 32), ANCHORS_TINY, 20, lambda: (BackboneTiny(), NeckTiny())),
        }
    )

    def build(
        self,
        name: str,
        num_classes: int,
        variant: Variant = AS_NAMED,
        *,
        anchors_px: AnchorsPx | None = None,
    ) -> Detector:
        """A new model. ``anchors_px`` are (width, height), finest level first; None means the model's own.

        A variant may have another number of anchors a level: the model's own, repeated, until they are set.

        Raises:
            UserError: anchors that do not fit the model.
        """
        spec = self.models[name]
        backbone, neck = spec.make_body()
        anchors = spec.anchors_px if anchors_px is None else anchors_px
        if number := variant.get(PER_LEVEL):
            anchors = [tuple(islice(cycle(level), number)) for level in anchors]
        head = AnchorHead(neck.channels, num_classes, anchors, spec.strides, spec.head_layer)
        return Detector(name, backbone, neck, head, variant)

    def recognise(self, shapes: Shapes) -> Iterator[Recognised]:
        """By the row of the head, its levels and the number of its anchors."""
        for name, spec in self.models.items():
            anchors = shapes.get(f"model.{spec.head_layer}.anchors", ())
            finest = shapes.get(f"model.{spec.head_layer}.m.0.weight", ())
            if len(anchors) != 3 or len(finest) != 4 or anchors[0] != len(spec.strides):
                continue
            own, number = len(spec.anchors_px[0]), anchors[1]
            if 0 < number <= MOST_PER_LEVEL and finest[0] % number == 0 and finest[0] // number > 5:
                variant = {} if number == own else {PER_LEVEL: number}
                yield Recognised(name, finest[0] // number - 5, variant)

    def is_untrained(self, key: str) -> bool:
        """Older files have their anchors a second time, in pixels."""
        return key.endswith(".anchor_grid")

    def criterion(self, model: Detector, config: TrainConfig) -> AnchorCriterion:
        """With gains scaled to the classes, levels and input size, as YOLOv5 scales them."""
        hyp = own_hyp(config)
        weights = LossWeights(
            box=hyp.box,
            obj=hyp.obj,
            cls=hyp.cls,
            cls_pw=hyp.cls_pw,
            obj_pw=hyp.obj_pw,
            fl_gamma=hyp.fl_gamma,
            label_smoothing=config.label_smoothing,
            anchor_t=hyp.anchor_t,
        )
        scaled = scale_weights(weights, model.num_classes, len(model.strides), config.imgsz)
        return AnchorCriterion(scaled, anchor_head(model))

    def teacher_gains(self, config: TrainConfig) -> TeacherGains:
        """The class term is a mean over classes here, and its gain is meant for 80."""
        gains = super().teacher_gains(config)
        return TeacherGains(gains.box, gains.cls / 80)

    def fit_to_data(
        self, model: Detector, boxes_wh_px: NDArray[np.floating[Any]], config: TrainConfig
    ) -> None:
        """Replace anchors that miss over 2 % of the boxes by fitted ones."""
        if config.noautoanchor:
            return
        head = anchor_head(model)
        report = check_anchors(boxes_wh_px, head.anchors_px.numpy(), own_hyp(config).anchor_t, config.seed)
        log.info("anchors: best possible recall %.4f", report.recall)
        if report.anchors is not None:
            head.set_anchors(torch.from_numpy(report.anchors))
            log.info("anchors: fitted to the data, best possible recall %.4f", report.fitted_recall)


def own_hyp(config: TrainConfig) -> AnchorBasedHyp:
    """The hyperparameters of a run of a model of this family."""
    assert isinstance(config.hyp, AnchorBasedHyp), type(config.hyp)
    return config.hyp


def anchor_head(model: Detector) -> AnchorHead:
    """The head of a model of this family."""
    assert isinstance(model.head, AnchorHead), model.name
    return model.head
