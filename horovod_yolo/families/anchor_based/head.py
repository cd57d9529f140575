"""The head that predicts boxes relative to anchors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from horovod_yolo.core.boxes import xywh_to_xyxy
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Decoded
from horovod_yolo.models.convolution import Conv2d
from horovod_yolo.models.detector import Head

AnchorsPx = Sequence[Sequence[tuple[float, float]]]  # levels, finest first; anchors of a level; (w, h) pixels


class AnchorHead(Head):
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
        self.num_classes = num_classes
        self.outputs = 5 + num_classes
        self.strides = tuple(strides)
        self.layer = layer
        anchors = _checked_anchors(anchors_px, len(strides))
        per_level = anchors.shape[1]
        in_strides = anchors / _column(self.strides, anchors)
        self.register_buffer("anchors", in_strides.to(torch.empty(0).device))
        self.m = nn.ModuleList(Conv2d(c, per_level * self.outputs, 1) for c in channels)
        self._bias_towards_rare_objects()

    @torch.no_grad()
    def _bias_towards_rare_objects(self) -> None:
        """Start where about 8 objects in 640 x 640 pixels and 0.6 / C of a class are expected.

        Lin et al., "Focal loss for dense object detection", 2017, section 3.3: from a prior of one half
        the many empty cells would drown everything else in the first steps.
        """
        for conv, stride in zip(self.m, self.strides, strict=True):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            bias = conv.bias.view(-1, self.outputs)
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            bias[:, 5:] += math.log(0.6 / (self.num_classes - 0.99999))

    def with_classes_of(
        self, weights: Mapping[str, Tensor], prefix: str, num_theirs: int, places: Sequence[int | None]
    ) -> dict[str, Tensor]:
        """See `Head`. Where a class is shared, box and objectness are the other head's too."""
        shared = [(here, there) for there, here in enumerate(places) if here is not None]
        if not shared:
            return {}
        merged = {}
        for name, own in self.named_parameters():
            value, theirs = own.detach().clone(), weights[prefix + name]
            rows = value.view(-1, self.outputs, *value.shape[1:])
            given = theirs.view(-1, 5 + num_theirs, *theirs.shape[1:])
            rows[:, :5] = given[:, :5]  # box and objectness
            for here, there in shared:
                rows[:, 5 + here] = given[:, 5 + there]
            merged[prefix + name] = value
        return merged

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """L maps (B, c_l, H_l, W_l) -> L raw predictions (B, A, H_l, W_l, 5 + C).

        Channels: tx, ty, tw, th, objectness logit, C class logits.
        """
        predictions = []
        for conv, x in zip(self.m, maps, strict=True):
            batch, _, height, width = x.shape
            y = conv(x).view(batch, self.anchors.shape[1], self.outputs, height, width)
            predictions.append(y.permute(0, 1, 3, 4, 2).contiguous())
        return predictions

    def decode(self, predictions: Sequence[Tensor]) -> Decoded:
        """The M places are in the order level, anchor, row, column: M is the sum of A * H_l * W_l.

        The centre may lie half a cell outside its cell, the size reaches four times the anchor (YOLOv5):
        ``xy = (2 sigmoid(t) - 0.5 + cell) * stride``, ``wh = (2 sigmoid(t))^2 * anchor``. The score is
        objectness times class probability.
        """
        levels = zip(predictions, self.anchors_px, self.strides, strict=True)
        boxes, scores = zip(*(_decode_level(*level) for level in levels), strict=True)
        return Decoded(xywh_to_xyxy(torch.cat(boxes, dim=1)), torch.cat(scores, dim=1))

    @property
    def anchors_px(self) -> Tensor:
        """(L, A, 2) anchor widths and heights in input pixels."""
        return self.anchors * _column(self.strides, self.anchors)

    @torch.no_grad()
    def set_anchors(self, anchors_px: AnchorsPx | Tensor) -> None:
        """Replace the anchors, (L, A, 2) in pixels.

        Raises:
            UserError: they are not as many as the head was built for, or not positive.
        """
        anchors = _checked_anchors(anchors_px, len(self.strides)).to(self.anchors)
        if anchors.shape != self.anchors.shape:
            raise UserError(
                f"{anchors.shape[1]} anchors a level for a head of {self.anchors.shape[1]}",
                where="anchors",
                fix="build the model with these anchors instead",
            )
        self.anchors.copy_(anchors / _column(self.strides, anchors))


def _decode_level(raw: Tensor, anchors_px: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """(B, A, H_l, W_l, 5 + C) -> boxes_xywh (B, M_l, 4) and scores (B, M_l, C)."""
    batch, per_level, height, width, _ = raw.shape
    p = (raw if raw.dtype == torch.float64 else raw.float()).sigmoid()
    rows = torch.arange(height, device=p.device, dtype=p.dtype)
    columns = torch.arange(width, device=p.device, dtype=p.dtype)
    cell = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (H_l, W_l, 2) x, y
    xy = (p[..., :2] * 2 - 0.5 + cell) * stride
    wh = (p[..., 2:4] * 2).square() * anchors_px.to(p).view(1, per_level, 1, 1, 2)
    places = per_level * height * width
    boxes_xywh = torch.cat((xy, wh), dim=-1).view(batch, places, 4)
    return boxes_xywh, (p[..., 4:5] * p[..., 5:]).view(batch, places, p.shape[-1] - 5)


def _column(strides: Sequence[int], like: Tensor) -> Tensor:
    return like.new_tensor(strides).view(-1, 1, 1)


def _checked_anchors(anchors_px: AnchorsPx | Tensor, levels: int) -> Tensor:
    """(L, A, 2) float32, or a UserError."""
    try:
        # Values also where a model is built without any: division of those loads half of torch's compiler.
        anchors = torch.as_tensor(anchors_px, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError) as error:  # ragged, or no numbers
        raise _anchor_error(levels) from error
    if anchors.ndim != 3 or anchors.shape[0] != levels or anchors.shape[1] < 1 or anchors.shape[2] != 2:
        raise _anchor_error(levels)
    if not bool(((anchors > 0) & anchors.isfinite()).all()):
        raise _anchor_error(levels)
    return anchors


def _anchor_error(levels: int) -> UserError:
    return UserError(
        f"anchors must be {levels} levels of equally many (width, height) pairs above 0",
        where="anchors",
        fix="give them in pixels, finest level first, or leave them out",
    )
