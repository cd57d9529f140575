"""The models of the family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.families.anchor_free.head import DistanceHead, HeadKind
from horovod_yolo.families.anchor_free.recipe import RECIPE, AnchorFreeHyp
from horovod_yolo.families.base import AS_NAMED, Family, ModelSpec, Recognised, Shapes, Variant
from horovod_yolo.losses.anchor_free import AnchorFreeCriterion, Gains, TwoHeadCriterion
from horovod_yolo.models import yolo11, yolov5, yolov8
from horovod_yolo.models.blocks import Backbone, Neck
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.layer_table import LayerTable, Scale
from horovod_yolo.models.yolov3 import BackboneTiny, Darknet53, NeckTiny, NeckV3

CLASS_WIDTH = "class_width"  # of a variant: channels inside the class branch
V8 = HeadKind()
V11 = HeadKind(depthwise=True)
V26 = HeadKind(bins=1, depthwise=True, one_to_one=True)


@dataclass(frozen=True)
class AnchorFreeModelSpec(ModelSpec):
    """What it takes to build a model: its body, and the kind and row of its head."""

    head: HeadKind
    head_layer: int  # row of the head in the published layer table
    make_body: Callable[[], tuple[Backbone, Neck]]


STRIDES = (8, 16, 32)


def _of_table(table: LayerTable, scale: Scale, head: HeadKind) -> AnchorFreeModelSpec:
    return AnchorFreeModelSpec(STRIDES, head, len(table.rows), lambda: table.bodies(scale))


def _yolov5u(size: yolov5.Size) -> AnchorFreeModelSpec:
    return AnchorFreeModelSpec(STRIDES, V8, 24, lambda: (yolov5.BackboneP5(size), yolov5.NeckP5(size)))


def _yolov3u(spp: bool) -> AnchorFreeModelSpec:
    """Their residual blocks have two 3x3 convolutions."""
    return AnchorFreeModelSpec(STRIDES, V8, 28, lambda: (Darknet53(kernel=3), NeckV3(spp, kernel=3)))


class AnchorFree(Family):
    """YOLOv8, YOLO11, YOLO26, and YOLOv5 and YOLOv3 with YOLOv8's head ("u")."""

    name = "anchor_free"
    recipe = RECIPE
    models: Mapping[str, AnchorFreeModelSpec] = MappingProxyType(
        {
            **{f"yolov8{s}": _of_table(yolov8.YOLOV8, scale, V8) for s, scale in yolov8.SCALES.items()},
            **{f"yolo11{s}": _of_table(yolo11.YOLO11, scale, V11) for s, scale in yolo11.SCALES.items()},
            **{f"yolo26{s}": _of_table(yolo11.YOLO26, scale, V26) for s, scale in yolo11.SCALES.items()},
            **{f"yolov5{s}u": _yolov5u(size) for s, size in yolov5.SIZES.items()},
            "yolov3u": _yolov3u(spp=False),
            "yolov3-sppu": _yolov3u(spp=True),
            "yolov3-tinyu": AnchorFreeModelSpec((16, 32), V8, 20, lambda: (BackboneTiny(), NeckTiny())),
        }
    )

    def build(self, name: str, num_classes: int, variant: Variant = AS_NAMED) -> Detector:
        """A new model.

        Its variant says the width of its class branch, which follows from the classes if it is not given:
        trained further on other classes, it keeps that width.
        """
        spec = self.models[name]
        backbone, neck = spec.make_body()
        width = variant.get(CLASS_WIDTH)
        head = DistanceHead(neck.channels, num_classes, spec.strides, spec.head_layer, spec.head, width)
        return Detector(name, backbone, neck, head, {CLASS_WIDTH: head.class_width})

    def recognise(self, shapes: Shapes) -> Iterator[Recognised]:
        """By the row of the head, its bins, and whether there are two."""
        for name, spec in self.models.items():
            row = f"model.{spec.head_layer}."
            sides, logits = shapes.get(f"{row}cv2.0.2.weight", ()), shapes.get(f"{row}cv3.0.2.weight", ())
            two = f"{row}one2one_cv2.0.2.weight" in shapes
            if not len(sides) == len(logits) == 4 or two != spec.head.one_to_one:
                continue
            if sides[0] == 4 * spec.head.bins and logits[0] > 0:
                yield Recognised(name, logits[0], {CLASS_WIDTH: logits[1]})

    def is_untrained(self, key: str) -> bool:
        """The numbers of the bins."""
        return key.endswith(".dfl.conv.weight")

    def criterion(self, model: Detector, config: TrainConfig) -> AnchorFreeCriterion | TwoHeadCriterion:
        """Of one head or of two."""
        hyp, head = config.hyp, distance_head(model)
        assert isinstance(hyp, AnchorFreeHyp), type(hyp)
        gains = Gains(box=hyp.box, cls=hyp.cls, dfl=hyp.dfl)
        if len(head.heads) > 1:
            return TwoHeadCriterion(gains, head)
        return AnchorFreeCriterion(gains, head)


def distance_head(model: Detector) -> DistanceHead:
    """The head of a model of this family."""
    assert isinstance(model.head, DistanceHead), model.name
    return model.head
