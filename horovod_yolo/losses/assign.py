"""Which cells and anchors answer for which ground-truth boxes (YOLOv5's rule)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from horovod_yolo.core.transfer import moved
from horovod_yolo.core.types import Targets


@dataclass(frozen=True)
class LevelMatch:
    """The matches of one level: match k says that one prediction answers for one box. All lengths are K."""

    image: Tensor  # (K,) int64
    anchor: Tensor  # (K,) int64
    grid_y: Tensor  # (K,) int64
    grid_x: Tensor  # (K,) int64
    boxes_xywh: Tensor  # (K, 4) centre relative to the cell's corner, and size, in cells
    anchors_wh: Tensor  # (K, 2) size of the anchor in cells
    classes: Tensor  # (K,) int64

    def __len__(self) -> int:
        return int(self.image.shape[0])


def assign(
    targets: Targets,
    anchors_wh: Sequence[Tensor] | Tensor,
    grid_sizes: Sequence[tuple[int, int]],
    anchor_t: float = 4.0,
) -> list[LevelMatch]:
    """Match boxes with predictions, level by level.

    A box is matched with every anchor whose width and height differ from its own by less than a factor
    ``anchor_t``, in the cell of its centre and in the nearest neighbour cells, one to the left or right and
    one above or below, where these are in the grid. The middle of a cell has no nearest neighbour.

    ``anchors_wh``: one (A, 2) tensor a level, in cells. ``grid_sizes``: (H_l, W_l). Each box is matched by
    itself, so the matches of a batch are those of its micro-batches. Computed in the anchors' precision, on
    the host: how many matches there are depends on the boxes, and a device would be waited for to learn it.
    """
    return [
        _assign_level(targets, anchors, size, anchor_t)
        for anchors, size in zip(anchors_wh, grid_sizes, strict=True)
    ]


def on_device(matches: Sequence[LevelMatch], device: torch.device) -> list[LevelMatch]:
    """Matches that were found on the host, on a device, in one copy."""
    names = [field.name for field in fields(LevelMatch)]
    parts = iter(moved([getattr(match, name) for match in matches for name in names], device))
    return [LevelMatch(**{name: next(parts) for name in names}) for _ in matches]


def _assign_level(
    targets: Targets, anchors_wh: Tensor, grid_size: tuple[int, int], anchor_t: float
) -> LevelMatch:
    height, width = grid_size
    boxes = targets.boxes_xywhn.to(anchors_wh) * anchors_wh.new_tensor([width, height, width, height])
    ratio = boxes[None, :, 2:] / anchors_wh[:, None]  # (A, N, 2)
    fits = torch.maximum(ratio, 1 / ratio).amax(dim=2) < anchor_t
    anchor, box = fits.nonzero(as_tuple=True)

    match, cell_xy = _cells(boxes[box, :2], width, height)
    anchor, box = anchor[match], box[match]
    return LevelMatch(
        image=targets.image[box],
        anchor=anchor,
        grid_y=cell_xy[:, 1],
        grid_x=cell_xy[:, 0],
        boxes_xywh=torch.cat((boxes[box, :2] - cell_xy, boxes[box, 2:]), dim=1),
        anchors_wh=anchors_wh[anchor],
        classes=targets.classes[box],
    )


def _cells(centres: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """(n, 2) centres in cells -> which centre (K,) and which cell (K, 2) x, y: own cells, then neighbours."""
    last = torch.tensor([width - 1, height - 1], device=centres.device)
    own = centres.floor().long().clamp(min=0).minimum(last)  # a centre on the far edge is in the last cell
    # -1, 0 or 1 in x and in y: the side on which the next cell is nearer.
    side = (centres - own - 0.5).sign().long()
    step_x, step_y = side * side.new_tensor([1, 0]), side * side.new_tensor([0, 1])
    cells = torch.stack((own, own + step_x, own + step_y))  # (3, n, 2)
    moved = (cells != own).any(dim=2)
    moved[0] = True
    inside = ((cells >= 0) & (cells <= last)).all(dim=2)
    slot, centre = (moved & inside).nonzero(as_tuple=True)
    return centre, cells[slot, centre]
