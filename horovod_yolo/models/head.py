"""The detection head, and the detector that joins backbone, neck and head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Predictions
from horovod_yolo.models.blocks import Neck, Part

AnchorsPx = Sequence[Sequence[tuple[float, float]]]  # levels, finest first; anchors of a level; (w, h) pixels


class AnchorHead(nn.Module):
    """One 1x1 convolution a level: A anchors, each 4 box terms, objectness and C classes.

    ``anchors`` is (L, A, 2) in units of the level's stride, the form in which published checkpoints hold it.
    ``layer`` is the head's row in the published layer table.
    """

    anchors: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        anchors_px: AnchorsPx,
        strides: Sequence[int],
        layer: int,
    ) -> None:
        super().__init__()
        self.outputs = 5 + num_classes
        self.strides = tuple(strides)
        self.layer = layer
        anchors = _checked_anchors(anchors_px, len(strides))
        per_level = anchors.shape[1]
        self.register_buffer("anchors", anchors / _column(self.strides, anchors))
        self.m = nn.ModuleList(nn.Conv2d(c, per_level * self.outputs, 1) for c in channels)
        self._bias_towards_rare_objects()

    @torch.no_grad()
    def _bias_towards_rare_objects(self) -> None:
        """Start where about 8 objects in 640 x 640 pixels and 0.6 / C of a class are expected.

        Lin et al., "Focal loss for dense object detection", 2017, section 3.3: from a prior of one half
        the many empty cells would drown everything else in the first steps.
        """
        num_classes = self.outputs - 5
        for conv, stride in zip(self.m, self.strides, strict=True):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            bias = conv.bias.view(-1, self.outputs)
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            bias[:, 5:] += math.log(0.6 / (num_classes - 0.99999))

    def forward(self, maps: Sequence[Tensor]) -> Predictions:
        """L maps (B, c_l, H_l, W_l) -> L raw predictions (B, A, H_l, W_l, 5 + C)."""
        predictions = []
        for conv, x in zip(self.m, maps, strict=True):
            batch, _, height, width = x.shape
            y = conv(x).view(batch, self.anchors.shape[1], self.outputs, height, width)
            predictions.append(y.permute(0, 1, 3, 4, 2).contiguous())
        return predictions


class Detector(nn.Module):
    """An anchor-based YOLO. ``state_dict()`` has the order of the published checkpoint of the same name."""

    def __init__(self, name: str, backbone: Part, neck: Neck, head: AnchorHead) -> None:
        super().__init__()
        self.name = name
        self.num_classes = head.outputs - 5
        self.strides = head.strides
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, images: Tensor) -> Predictions:
        """(B, 3, H, W) in 0..1, H and W multiples of the coarsest stride -> raw predictions, finest first."""
        predictions: Predictions = self.head(self.neck(self.backbone(images)))
        return predictions

    @property
    def anchors(self) -> Tensor:
        """(L, A, 2) anchor widths and heights in units of the level's stride."""
        return self.head.anchors

    @property
    def anchors_px(self) -> Tensor:
        """(L, A, 2) anchor widths and heights in input pixels."""
        return self.head.anchors * _column(self.strides, self.head.anchors)

    @torch.no_grad()
    def set_anchors(self, anchors_px: AnchorsPx | Tensor) -> None:
        """Replace the anchors, (L, A, 2) in pixels.

        Raises
        ------
        UserError
            They are not as many as the head was built for, or not positive.
        """
        anchors = _checked_anchors(anchors_px, len(self.strides)).to(self.anchors)
        if anchors.shape != self.anchors.shape:
            raise UserError(
                f"{anchors.shape[1]} anchors a level for a head of {self.anchors.shape[1]}",
                where=f"anchors of {self.name}",
                fix="build the model with these anchors instead",
            )
        self.head.anchors.copy_(anchors / _column(self.strides, anchors))


def published_names(model: Detector) -> list[str]:
    """The published checkpoint's key for each key of ``model.state_dict()``, in the same order."""
    names = []
    for key in model.state_dict():
        part, child, *rest = key.split(".")
        if part == "head":
            names.append(".".join(["model", str(model.head.layer), child, *rest]))
            continue
        layers = model.get_submodule(part)
        assert isinstance(layers, Part)
        names.append(".".join(["model", str(layers.published[child]), *rest]))
    return names


def _column(strides: Sequence[int], like: Tensor) -> Tensor:
    return like.new_tensor(strides).view(-1, 1, 1)


def _checked_anchors(anchors_px: AnchorsPx | Tensor, levels: int) -> Tensor:
    """(L, A, 2) float32, or a UserError."""
    try:
        anchors = torch.as_tensor(anchors_px, dtype=torch.float32)
    except (TypeError, ValueError) as error:  # ragged, or no numbers
        raise _anchor_error(levels) from error
    if anchors.ndim != 3 or anchors.shape[0] != levels or anchors.shape[1] < 1 or anchors.shape[2] != 2:
        raise _anchor_error(levels)
    if not anchors.is_meta and not bool(((anchors > 0) & anchors.isfinite()).all()):
        raise _anchor_error(levels)
    return anchors


def _anchor_error(levels: int) -> UserError:
    return UserError(
        f"anchors must be {levels} levels of equally many (width, height) pairs above 0",
        where="anchors",
        fix="give them in pixels, finest level first, or leave them out",
    )
