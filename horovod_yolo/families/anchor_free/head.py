"""The head whose cells predict the distances of a box's sides."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from horovod_yolo.core.cells import CellMaps, boxes_around, cells_of, distances_of
from horovod_yolo.core.types import Decoded
from horovod_yolo.losses.anchor_free import ONE_TO_MANY, ONE_TO_ONE
from horovod_yolo.models.blocks import Conv
from horovod_yolo.models.convolution import Conv2d
from horovod_yolo.models.detector import Head

MOST_CLASSES_IN_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class HeadKind:
    """What differs between the generations."""

    bins: int = 16  # a side's distance is a distribution over as many; 1: a number
    depthwise: bool = False  # the class branch
    one_to_one: bool = False  # there is a second head, whose detections need no suppression


class DistributionMean(nn.Module):
    """The bins' distances as published files hold them, 0..R-1: never trained, and part of their count."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        # No torch.arange: without values, as files are recognised, it loads half of torch's compiler.
        self.conv.weight.data = torch.tensor([float(bin) for bin in range(bins)]).view(1, bins, 1, 1)


class DistanceHead(Head):
    """For each level a branch of two convolutions to 4R sides, and one to C classes.

    YOLO26 has both twice: the second head, one-to-one, finds each object once. It sends no gradient into
    the maps.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        strides: Sequence[int],
        layer: int,
        kind: HeadKind,
        class_width: int | None = None,
    ) -> None:
        """``class_width``: channels inside the class branch. None: as many as follow from the classes.

        Files of models that were trained further often have those of the model they came from.
        """
        super().__init__()
        self.num_classes, self.strides, self.layer = num_classes, tuple(strides), layer
        self.bins = kind.bins
        width = max(16, channels[0] // 4, 4 * kind.bins)
        self.class_width = class_width or max(channels[0], min(num_classes, MOST_CLASSES_IN_WIDTH))
        make_logits = _depthwise_branch if kind.depthwise else _branch
        self.cv2 = nn.ModuleList(_branch(c, width, 4 * kind.bins) for c in channels)
        self.cv3 = nn.ModuleList(make_logits(c, self.class_width, num_classes) for c in channels)
        if kind.bins > 1:
            self.dfl = DistributionMean(kind.bins)
        self._bias_towards_rare_objects()
        if kind.one_to_one:
            self.one2one_cv2, self.one2one_cv3 = copy.deepcopy(self.cv2), copy.deepcopy(self.cv3)
            self.heads = (ONE_TO_ONE, ONE_TO_MANY)

    @torch.no_grad()
    def _bias_towards_rare_objects(self) -> None:
        """Start where about 5 objects in 640 x 640 pixels are expected."""
        for sides, logits, stride in zip(self.cv2, self.cv3, self.strides, strict=True):
            _bias_of(sides).fill_(2.0)
            _bias_of(logits).fill_(math.log(5 / self.num_classes / (640 / stride) ** 2))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, CellMaps]:
        """L maps (B, c_l, H_l, W_l) -> raw predictions of each head."""
        predictions = {ONE_TO_MANY: _apply(self.cv2, self.cv3, maps)}
        if ONE_TO_ONE in self.heads:
            detached = [x.detach() for x in maps]
            predictions[ONE_TO_ONE] = _apply(self.one2one_cv2, self.one2one_cv3, detached)
        return predictions

    def decode(self, predictions: Mapping[str, CellMaps]) -> Decoded:
        """Of the head that is used. The M places are in the order level, row, column."""
        return self._decode(predictions[self.used or ONE_TO_MANY])

    def decode_each(self, predictions: Mapping[str, CellMaps]) -> list[tuple[Decoded, bool]]:
        """See `Head`."""
        return [(self._decode(maps), name == ONE_TO_ONE) for name, maps in predictions.items()]

    def _decode(self, maps: CellMaps) -> Decoded:
        sides, logits = maps.joined()
        cells = cells_of(maps, self.strides)
        return Decoded(boxes_around(cells.points, distances_of(sides)) * cells.strides, logits.sigmoid())

    @property
    def finds_once(self) -> bool:
        """Where the one-to-one head is used."""
        return self.used == ONE_TO_ONE

    def class_branches(self) -> Sequence[nn.Module]:
        """Of each head."""
        return [self.cv3, self.one2one_cv3] if ONE_TO_ONE in self.heads else [self.cv3]

    def with_classes_of(
        self, weights: Mapping[str, Tensor], prefix: str, num_theirs: int, places: Sequence[int | None]
    ) -> dict[str, Tensor]:
        """See `Head`. What knows no class by name is the other head's too, where it has the same shape."""
        shared = [(here, there) for there, here in enumerate(places) if here is not None]
        if weights[f"{prefix}cv3.0.2.weight"].shape[1] != self.class_width:
            shared = []  # rows that see other channels say nothing here
        of_classes = {
            f"{branch}.{level}.2.{part}"
            for branch in ("cv3", "one2one_cv3")
            for level in range(len(self.strides))
            for part in ("weight", "bias")
        }
        merged = {}
        for name, own in self.named_parameters():
            theirs = weights.get(prefix + name)  # files may leave the numbers of the bins out
            if theirs is None:
                continue
            if name in of_classes and shared:
                merged[prefix + name] = own.detach().clone()
                for here, there in shared:
                    merged[prefix + name][here] = theirs[there]
            elif name not in of_classes and theirs.shape == own.shape:
                merged[prefix + name] = theirs.to(own)
        return merged


def _branch(c_in: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Conv(c_in, width, 3), Conv(width, width, 3), Conv2d(width, outputs, 1))


def _depthwise_branch(c_in: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(Conv(c_in, c_in, 3, groups=c_in), Conv(c_in, width, 1)),
        nn.Sequential(Conv(width, width, 3, groups=width), Conv(width, width, 1)),
        Conv2d(width, outputs, 1),
    )


def _bias_of(branch: nn.Module) -> Tensor:
    bias: Tensor = branch.get_parameter("2.bias")
    return bias


def _apply(of_sides: nn.ModuleList, of_logits: nn.ModuleList, maps: Sequence[Tensor]) -> CellMaps:
    return CellMaps(
        [branch(x) for branch, x in zip(of_sides, maps, strict=True)],
        [branch(x) for branch, x in zip(of_logits, maps, strict=True)],
    )
