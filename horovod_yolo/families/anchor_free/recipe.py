"""How models without anchors are trained unless the user says otherwise: as Ultralytics 8.4 trains them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from horovod_yolo.config.hyperparameters import NOT_NEGATIVE, SHARE, Hyp
from horovod_yolo.families.base import Recipe


@dataclass(frozen=True, kw_only=True)
class AnchorFreeHyp(Hyp):
    """Hyperparameters under Ultralytics' names."""

    box: float = 7.5
    cls: float = 0.5
    cutmix: float = 0.0
    dfl: float = 1.5  # also of what stands in its place in YOLO26, whose sides have no distribution

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(SHARE, "cutmix")
        self.require(NOT_NEGATIVE, "box", "cls", "dfl")


RECIPE = Recipe(
    hyp=AnchorFreeHyp,
    run=MappingProxyType({"epochs": 100, "optimizer": "auto", "close_mosaic": 10}),
    fitness=(0.0, 1.0),
    iou_of_validation=0.7,
    iou_of_prediction=0.7,
    augmentation=MappingProxyType({"turns_hue": True, "mixes_singles": True}),
    averages_areas=False,
    least_warmup_batches=0,
    warms_up_in_last_epoch=False,
)
