"""Predictions of cells without anchors: the distances of a box's four sides from the middle of its cell.

Level maps are read row by row and joined, finest level first; M is the number of cells of all levels. A side
is predicted by R bins (R = 1: by its distance itself). Distances are in cells of the level: left, top, right,
bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class CellMaps(NamedTuple):
    """Raw predictions of one head, L maps each."""

    sides: Sequence[Tensor]  # (B, 4R, H_l, W_l); channel = side * R + bin
    logits: Sequence[Tensor]  # (B, C, H_l, W_l)

    def joined(self) -> tuple[Tensor, Tensor]:
        """Sides (B, M, 4R) and logits (B, M, C), at least float32."""
        return _joined(self.sides), _joined(self.logits)


class Cells(NamedTuple):
    """Where the cells of all levels are."""

    points: Tensor  # (M, 2) x, y of their middles, in cells
    strides: Tensor  # (M, 1) pixels of a cell

    @property
    def points_px(self) -> Tensor:
        """(M, 2) in input pixels."""
        return self.points * self.strides


def _joined(maps: Sequence[Tensor]) -> Tensor:
    joined = torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], dim=1)
    return joined if joined.dtype == torch.float64 else joined.float()


def cells_of(maps: CellMaps, strides: Sequence[int]) -> Cells:
    """The cells of some predictions."""
    points, sizes = [], []
    for one, stride in zip(maps.sides, strides, strict=True):
        kind = torch.float64 if one.dtype == torch.float64 else torch.float32
        rows, columns = (torch.arange(n, device=one.device, dtype=kind) + 0.5 for n in one.shape[2:])
        points.append(torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).view(-1, 2))
        sizes.append(torch.full_like(points[-1][:, :1], stride))  # no len(): exporters follow shapes
    return Cells(torch.cat(points), torch.cat(sizes))


def distances_of(sides: Tensor) -> Tensor:
    """(..., 4R) raw -> (..., 4) distances in cells.

    With R > 1 the mean of the distribution over 0..R-1 (Li et al., "Generalized focal loss", 2020,
    equation 5). With R = 1 as it is: it may be negative.
    """
    bins = sides.shape[-1] // 4
    if bins == 1:
        return sides
    probabilities = sides.view(*sides.shape[:-1], 4, bins).softmax(dim=-1)
    distances: Tensor = probabilities @ torch.arange(bins, device=sides.device, dtype=sides.dtype)
    return distances


def boxes_around(points: Tensor, distances: Tensor) -> Tensor:
    """(..., 2) points and (..., 4) distances -> (..., 4) corners."""
    left_top, right_bottom = distances.chunk(2, dim=-1)
    return torch.cat((points - left_top, points + right_bottom), dim=-1)


def distances_to(points: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """The inverse of `boxes_around`."""
    left_top, right_bottom = boxes_xyxy.chunk(2, dim=-1)
    return torch.cat((points - left_top, right_bottom - points), dim=-1)
