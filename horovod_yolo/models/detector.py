"""A detector: backbone, neck and head. What differs between families is in the head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Decoded, Detections
from horovod_yolo.models.blocks import Backbone, Neck, NumberedLayers
from horovod_yolo.models.suppression import Thresholds, best_of_each_place, non_max_suppression


class Head(nn.Module, ABC):
    """The last layer: feature maps to predictions, and predictions to boxes.

    ``layer`` is its row in the published layer table. Its children have their published names.
    """

    num_classes: int
    strides: tuple[int, ...]  # of the maps it takes, finest first
    layer: int
    heads: tuple[str, ...] = ("",)  # where it is several in one: those that can detect, the usual one first
    _used: str | None = None

    @property
    def used(self) -> str:
        """The one of ``heads`` that detects."""
        return self._used or self.heads[0]

    def use(self, name: str) -> None:
        """Detect with another one of ``heads``; "" for the usual one.

        Raises:
            UserError: there is no such head.
        """
        if name and name not in self.heads:
            has = f"it has {' and '.join(self.heads)}" if len(self.heads) > 1 else "it has one only"
            raise UserError(f"the model has no head {name}", where="--head", fix=f"leave it out: {has}")
        self._used = name or None

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> Any:
        """L maps (B, c_l, H_l, W_l) -> predictions in the family's own form, which its criterion knows.

        In training and in evaluation mode alike. Connected to every parameter, also with B = 0.
        """

    @abstractmethod
    def decode(self, predictions: Any) -> Decoded:
        """Boxes and scores of every place that predicts one. Half precision is decoded in float32."""

    def decode_each(self, predictions: Any) -> Sequence[tuple[Decoded, bool]]:
        """`decode` of each of the ``heads``, and whether that one finds each object once."""
        return [(self.decode(predictions), self.finds_once)]

    def with_classes_of(
        self, weights: Mapping[str, Tensor], prefix: str, num_theirs: int, places: Sequence[int | None]
    ) -> dict[str, Tensor]:
        """What another head of its kind knows of the classes that both have, for this one.

        By default it is not known which parameters belong to a class: nothing is taken.

        Args:
            weights: the other model's, whose keys have the ``prefix`` where they are the head's.
            prefix: of the head's keys.
            num_theirs: how many classes the other head has.
            places: of each of their classes its place here; None: it has none.

        Returns:
            Values of those parameters that take anything, by key, with the prefix: where a class is new, its
            rows are this head's own.
        """
        return {}

    def class_branches(self) -> Sequence[nn.Module]:
        """The parts that predict nothing but classes, where it has such: MuSGD moves them faster."""
        return ()

    @property
    def finds_once(self) -> bool:
        """Whether it finds each object once, so that nothing needs to be suppressed."""
        return False

    def suppress(self, decoded: Decoded, thresholds: Thresholds) -> list[Detections]:
        """The detections of each of the B images, best first."""
        select = best_of_each_place if self.finds_once else non_max_suppression
        return select(decoded, thresholds)


class Detector(nn.Module):
    """A YOLO. ``state_dict()`` has the order of the published checkpoint of the same name.

    ``variant`` has the numbers in which it differs from what the name says (a head of another width).
    """

    def __init__(
        self, name: str, backbone: Backbone, neck: Neck, head: Head, variant: Mapping[str, int] | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.variant = dict(variant or {})
        self.num_classes = head.num_classes
        self.strides = head.strides
        self.backbone = backbone
        self.neck = neck
        self.head = head

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that training changes, in the order of ``state_dict()``."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, images: Tensor) -> Any:
        """(B, 3, H, W) in 0..1, H and W multiples of the coarsest stride -> the head's predictions."""
        return self.head(self.neck(self.backbone(images)))

    def detect(self, predictions: Any, thresholds: Thresholds) -> list[Detections]:
        """The head's predictions -> the detections of each of the B images, in input pixels, best first."""
        return self.head.suppress(self.head.decode(predictions), thresholds)


def published_names(model: Detector) -> list[str]:
    """The published checkpoint's key for each key of ``model.state_dict()``, in the same order."""
    names = []
    for key in model.state_dict():
        section, child, *rest = key.split(".")
        if section == "head":
            names.append(".".join(["model", str(model.head.layer), child, *rest]))
            continue
        layers = model.get_submodule(section)
        assert isinstance(layers, NumberedLayers)
        names.append(".".join(["model", str(layers.published[child]), *rest]))
    return names
