"""Which cells lie in which ground-truth boxes: found on the host, before there are predictions.

How many there are depends on the boxes, and a device would be waited for to learn it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from horovod_yolo.core.boxes import xywh_to_xyxy, xyxy_to_xywh
from horovod_yolo.core.transfer import moved
from horovod_yolo.core.types import Targets

MARGIN_PX = 1e-9  # a cell's point must be farther inside a box


@dataclass(frozen=True)
class Level:
    """The cells of one level."""

    rows: int
    columns: int
    stride: int  # pixels of a cell


@dataclass(frozen=True)
class Candidates:
    """Pairs of a ground truth and one of its candidate cells, P of them, by ground truth and then cell."""

    truth: Tensor  # (P,) int64 among the N targets
    cell: Tensor  # (P,) int64 among the M cells of all levels
    truths_xyxy: Tensor  # (N, 4) in input pixels
    image: Tensor  # (N,) int64 of each target
    classes: Tensor  # (N,) int64 of each target


@torch.no_grad()
def candidates_of(
    targets: Targets,
    size: tuple[int, int],
    levels: Sequence[Level],
    least_side: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Candidates:
    """The candidates of each ground truth, by one copy to a device.

    Args:
        targets: N of them, on the host.
        size: (H, W) of the input in pixels.
        levels: of the M cells, in their order.
        least_side: for this alone, shorter sides are lengthened to so many pixels.
        dtype: of corners.
        device: of the predictions.
    """
    height, width = size
    scale = torch.tensor([width, height, width, height], dtype=dtype)
    truths_xyxy = xywh_to_xyxy(targets.boxes_xywhn.to(dtype)) * scale
    table = _rectangles(truths_xyxy, levels, least_side)
    pairs = int(table[0].sum())
    table, truths_xyxy, image, classes = moved((table, truths_xyxy, targets.image, targets.classes), device)
    counts, first, columns, wide = table
    rectangle = torch.repeat_interleave(counts, output_size=pairs)
    place = torch.arange(pairs, device=device) - (counts.cumsum(0) - counts)[rectangle]
    wide = wide[rectangle]
    row = torch.div(place, wide, rounding_mode="floor")
    cell = first[rectangle] + row * columns[rectangle] + (place - row * wide)
    truth = torch.div(rectangle, len(levels), rounding_mode="floor")
    return Candidates(truth, cell, truths_xyxy, image, classes)


def _rectangles(truths_xyxy: Tensor, levels: Sequence[Level], least_side: float) -> Tensor:
    """(4, N * L) of each ground truth in each level: how many cells, the first, those of a row of the level,
    and of a row of its own.
    """
    boxes_xywh = xyxy_to_xywh(truths_xyxy)
    sides = boxes_xywh[:, 2:].clamp(min=least_side)
    inner = xywh_to_xyxy(torch.cat((boxes_xywh[:, :2], sides), dim=1))
    left, top, right, bottom = (edge.contiguous() for edge in inner.T)
    left, top, right, bottom = left + MARGIN_PX, top + MARGIN_PX, right - MARGIN_PX, bottom - MARGIN_PX
    found, offset = [], 0
    for level in levels:
        x, y = (
            (torch.arange(count, dtype=inner.dtype) + 0.5) * level.stride
            for count in (level.columns, level.rows)
        )
        x0, y0 = torch.searchsorted(x, left, right=True), torch.searchsorted(y, top, right=True)
        wide = (torch.searchsorted(x, right) - x0).clamp(min=0)
        high = (torch.searchsorted(y, bottom) - y0).clamp(min=0)
        columns = torch.full_like(x0, level.columns)
        found.append(torch.stack((wide * high, offset + y0 * level.columns + x0, columns, wide)))
        offset += level.rows * level.columns
    return torch.stack(found, dim=-1).flatten(1)
