"""How YOLOv5 and YOLOv3 are trained unless the user says otherwise: as YOLOv5 trains them."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_yolo.config.hyperparameters import ABOVE_1, NOT_NEGATIVE, POSITIVE, SHARE, Hyp
from horovod_yolo.families.base import Recipe


@dataclass(frozen=True, kw_only=True)
class AnchorBasedHyp(Hyp):
    """A YOLOv5 ``hyp*.yaml``. Defaults are its ``hyp.scratch-low``."""

    box: float = 0.05
    cls: float = 0.5
    cls_pw: float = 1.0
    obj: float = 1.0
    obj_pw: float = 1.0
    iou_t: float = 0.20  # accepted for YOLOv5's files, as are the anchors
    anchor_t: float = 4.0
    anchors: float = 0.0
    fl_gamma: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(SHARE, "label_smoothing")
        self.require(POSITIVE, "cls_pw", "obj_pw")
        self.require(NOT_NEGATIVE, "box", "cls", "obj", "fl_gamma")
        self.require(ABOVE_1, "anchor_t")


RECIPE = Recipe(hyp=AnchorBasedHyp)
