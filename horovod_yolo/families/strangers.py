"""Published files of trainers whose models we have that hold none of them: what they are instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from horovod_yolo.families.base import Shapes

# Classes of modules that only such a model has.
_BY_CLASS = {
    "a segmentation model": {"SegmentationModel", "Segment", "YOLOESegModel", "YOLOESegment"},
    "a pose model": {"PoseModel", "Pose"},
    "a model of oriented boxes": {"OBBModel", "OBB"},
    "a classification model": {"ClassificationModel", "Classify"},
    "YOLO-World, whose classes come from texts": {"WorldModel", "WorldDetect", "YOLOEModel", "YOLOEDetect"},
    "RT-DETR": {"RTDETRDetectionModel", "RTDETRDecoder"},
    "YOLOv10": {"YOLOv10DetectionModel", "v10Detect"},
    "several models in one": {"Ensemble"},
}
_USUAL_ACTIVATION = "SiLU"
_OTHER_ACTIVATIONS = {"ReLU", "ReLU6", "LeakyReLU", "PReLU", "Hardswish", "Mish", "GELU", "ELU", "MetaAconC"}
_STEM = "model.0.conv.weight"
_DETECTORS = "what is trained here are detectors: use the file of one"
_OLD = "train it with this project from the weights of a later release, whose layers differ"


def _has(pattern: str) -> Callable[[Shapes], bool]:
    key = re.compile(pattern)
    return lambda shapes: any(key.search(name) for name in shapes)


# In this order: what it is, what to do, and by which tensors it is told.
_BY_TENSORS: tuple[tuple[str, str, Callable[[Shapes], bool]], ...] = (
    ("a segmentation model", _DETECTORS, _has(r"\.proto\.")),
    ("a model of poses or oriented boxes, or of classes from texts", _DETECTORS, _has(r"^model\.\d+\.cv4\.")),
    ("a classification model", _DETECTORS, _has(r"^model\.\d+\.linear\.weight$")),
    ("RT-DETR", _DETECTORS, _has(r"^model\.\d+\.(decoder|enc_score_head)\.")),
    (
        "YOLOv10",
        _DETECTORS,
        lambda shapes: _has(r"\.one2one_cv2\.")(shapes) and _has(r"\.dfl\.")(shapes),
    ),
    ("a YOLOv5 from before 6.0 (its first layer is Focus)", _OLD, _has(r"^model\.0\.conv\.conv\.weight$")),
    (
        "a fused model, whose batch norm went into its convolutions for good",
        "use the file that training wrote, from before it was fused or exported",
        lambda shapes: not _has(r"\.bn\.")(shapes) and _STEM in shapes,
    ),
    ("quantised", "use the file that training wrote", _has(r"\.(scale|zero_point|_packed_params)$")),
)


def what_else(shapes: Shapes, classes: Collection[str]) -> tuple[str, str] | None:
    """What a file holds that is none of our models, and what to do; None where nothing tells.

    Args:
        shapes: of its tensors.
        classes: of its modules, without their packages; none where it has tensors only.
    """
    for kind, own in _BY_CLASS.items():
        if own & set(classes):
            return kind, _DETECTORS
    for kind, remedy, is_one in _BY_TENSORS:
        if is_one(shapes):
            return kind, remedy
    if others := sorted(_OTHER_ACTIVATIONS & set(classes)):
        return f"a model with {others[0]} for {_USUAL_ACTIVATION}", "models here have one activation only"
    return None
