"""The assignment against loops that follow its definition word by word."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.core.types import Targets
from horovod_yolo.losses.assign import LevelMatch, assign

Row = tuple[int, int, int, int, tuple[float, ...], tuple[float, ...], int]


def make_targets(rows: list[tuple[int, int, float, float, float, float]]) -> Targets:
    return Targets(
        torch.tensor([r[0] for r in rows], dtype=torch.int64),
        torch.tensor([r[1] for r in rows], dtype=torch.int64),
        torch.tensor([r[2:] for r in rows], dtype=torch.float32).reshape(-1, 4),
    )


def rows_of(match: LevelMatch) -> list[Row]:
    return sorted(
        (
            int(match.image[k]),
            int(match.anchor[k]),
            int(match.grid_y[k]),
            int(match.grid_x[k]),
            tuple(match.boxes_xywh[k].tolist()),
            tuple(match.anchors_wh[k].tolist()),
            int(match.classes[k]),
        )
        for k in range(len(match))
    )


def neighbours(centre: float, cells: int) -> list[int]:
    """The cell of a centre along one axis, and the nearest neighbour cell if it is in the grid."""
    own = min(math.floor(centre), cells - 1)
    nearest = [own - 1] if centre - own < 0.5 else [own + 1] if centre - own > 0.5 else []
    return [own, *(c for c in nearest if 0 <= c < cells)]


def slow_assign(targets: Targets, anchors: torch.Tensor, size: tuple[int, int], anchor_t: float) -> list[Row]:
    height, width = size
    found: list[Row] = []
    for image, cls, box in zip(
        targets.image.tolist(), targets.classes.tolist(), targets.boxes_xywhn.double().tolist(), strict=True
    ):
        x, y, w, h = box[0] * width, box[1] * height, box[2] * width, box[3] * height
        for a, (aw, ah) in enumerate(anchors.tolist()):
            if max(w / aw, aw / w, h / ah, ah / h) >= anchor_t:
                continue
            columns, rows = neighbours(x, width), neighbours(y, height)
            cells = [(columns[0], rows[0])]
            cells += [(c, rows[0]) for c in columns[1:]]
            cells += [(columns[0], r) for r in rows[1:]]
            found += [(image, a, cy, cx, (x - cx, y - cy, w, h), (aw, ah), cls) for cx, cy in cells]
    return sorted(found)


share = st.floats(0.0, 1.0, width=32)
side = st.floats(0.0078125, 1.0, width=32)
box_rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), share, share, side, side), max_size=12)


@settings(max_examples=150)
@given(
    box_rows,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.tuples(st.floats(0.25, 8), st.floats(0.25, 8)), min_size=1, max_size=4),
    st.sampled_from([1.5, 2.9, 4.0, 8.0]),
)
def test_equals_the_loops(
    rows: list[tuple[int, int, float, float, float, float]],
    size: tuple[int, int],
    anchors: list[tuple[float, float]],
    anchor_t: float,
) -> None:
    targets, anchors_wh = make_targets(rows), torch.tensor(anchors, dtype=torch.float64)
    (match,) = assign(targets, [anchors_wh], [size], anchor_t)
    assert rows_of(match) == slow_assign(targets, anchors_wh, size, anchor_t)


@settings(max_examples=50)
@given(box_rows, st.integers(0, 12))
def test_matches_of_a_batch_are_those_of_its_halves(
    rows: list[tuple[int, int, float, float, float, float]], cut: int
) -> None:
    anchors, size = torch.tensor([[1.0, 1.5], [3.0, 2.0]]), (6, 5)
    (whole,) = assign(make_targets(rows), [anchors], [size])
    halves = [assign(make_targets(half), [anchors], [size])[0] for half in (rows[:cut], rows[cut:])]
    assert rows_of(whole) == sorted(rows_of(halves[0]) + rows_of(halves[1]))


@pytest.mark.parametrize(
    ("x", "y", "cells"),
    [
        (2.25, 3.25, {(2, 3), (1, 3), (2, 2)}),
        (2.75, 3.75, {(2, 3), (3, 3), (2, 4)}),
        (2.5, 3.5, {(2, 3)}),
        (0.25, 0.25, {(0, 0)}),
        (7.75, 7.75, {(7, 7)}),
        (8.0, 8.0, {(7, 7)}),  # on the far edge of the image
        (0.0, 0.0, {(0, 0)}),
        (3.0, 3.5, {(3, 3), (2, 3)}),  # on a line between cells: each cell once
    ],
)
def test_cells_by_hand(x: float, y: float, cells: set[tuple[int, int]]) -> None:
    targets = make_targets([(0, 0, x / 8, y / 8, 0.25, 0.25)])
    (match,) = assign(targets, [torch.tensor([[2.0, 2.0]])], [(8, 8)])
    assert len(match) == len(cells)
    assert {(int(cx), int(cy)) for cx, cy in zip(match.grid_x, match.grid_y, strict=True)} == cells
    centres = match.boxes_xywh[:, :2] + torch.stack((match.grid_x, match.grid_y), dim=1)
    assert torch.equal(centres, torch.tensor([[x, y]]).expand_as(centres))


def test_threshold_is_exclusive_and_boxes_without_size_match_nothing() -> None:
    targets = make_targets([(0, 0, 0.5, 0.5, 0.5, 0.5), (0, 1, 0.5, 0.5, 0.0, 0.5)])
    (match,) = assign(targets, [torch.tensor([[1.0, 4.0], [1.01, 4.0]])], [(8, 8)], anchor_t=4.0)
    assert set(match.anchor.tolist()) == {1}
    assert set(match.classes.tolist()) == {0}


def test_no_targets() -> None:
    anchors = torch.ones(2, 3, 2)
    for match in assign(make_targets([]), anchors, [(8, 8), (4, 4)]):
        assert len(match) == 0
        assert match.boxes_xywh.shape == (0, 4)
        assert match.anchors_wh.shape == (0, 2)
