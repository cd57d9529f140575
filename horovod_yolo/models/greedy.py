"""Which boxes overlap a better one, exactly as a plain loop in double precision finds it, for whole batches.

Most pairs of boxes are never looked at. The IoU of two boxes is at most that of their widths, so where it is
above t, the one that begins further right does so within (1 - t) of the other's width, and no side is longer
than 1 / t of the other's; for heights alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Ints

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]

PAIRS = 1 << 14  # that are looked at together: their arrays stay in the processor's cache
ROUNDING = 1e-9  # far more than what limits can be off by
LEAST = 1e-300  # instead of 0, to divide by


@dataclass(frozen=True)
class _Line:
    """n boxes in the order of their groups and left sides, which ``keys`` (n,) are proportional to."""

    order: Ints  # (n,) their places in the caller's arrays
    columns: Doubles  # (5, n) corners and areas
    keys: Doubles


def first_of_each(boxes_xyxy: Doubles, groups: Ints, iou_threshold: float) -> Bools:
    """Which of n boxes, best first, are kept: (n,).

    A box is dropped where a kept one before it, of the same group, overlaps it by more than the threshold.

    Args:
        boxes_xyxy: (n, 4), finite.
        groups: (n,) numbers from 0.
        iou_threshold: an overlap of exactly this much drops nothing.
    """
    (line,) = _in_line((boxes_xyxy, groups))
    reach = (1 - iou_threshold) * _widths(line) + ROUNDING * line.keys[-1:]
    last = np.searchsorted(line.keys, line.keys + reach, side="right")
    one, other = _overlapping(line, line, np.arange(1, len(last) + 1), last, iou_threshold)
    one, other = line.order[one], line.order[other]
    better, worse = np.minimum(one, other), np.maximum(one, other)
    # All stay at first. Then each falls that a staying one overlaps before it, again and again: after j times
    # the first j are as the loop leaves them, so where nothing changes any more, all are.
    stay, changed = np.ones(len(groups), bool), True
    while changed:
        after = np.ones(len(groups), bool)
        after[worse[stay[better]]] = False
        stay, changed = after, not np.array_equal(after, stay)
    return stay


def overlapped(
    boxes_xyxy: Doubles, groups: Ints, by_xyxy: Doubles, by_groups: Ints, iou_threshold: float
) -> Bools:
    """Which of (n, 4) boxes one of (m, 4) others, of the same group, overlaps by more than the threshold."""
    line, by = _in_line((boxes_xyxy, groups), (by_xyxy, by_groups))
    widest = _widths(line).max(initial=0)
    rounding = ROUNDING * max(line.keys[-1:].max(initial=0), by.keys[-1:].max(initial=0))
    widths = (1 - iou_threshold) * _widths(by)
    before = np.minimum(widths / max(iou_threshold, LEAST), widest)
    first = np.searchsorted(line.keys, by.keys - before - rounding, side="left")
    last = np.searchsorted(line.keys, by.keys + widths + rounding, side="right")
    _, other = _overlapping(by, line, first, last, iou_threshold)
    over = np.zeros(len(groups), bool)
    over[line.order[other]] = True
    return over


def _in_line(*sets: tuple[Doubles, Ints]) -> list[_Line]:
    """Each of some sets of boxes, with keys that can be compared; no box reaches another group."""
    left = min(boxes[:, 0].min(initial=0) for boxes, _ in sets)
    right = max(boxes[:, 2].max(initial=0) for boxes, _ in sets)
    lines = []
    for boxes, groups in sets:
        keys = groups * (4 * (right - left + 1)) + (boxes[:, 0] - left)
        order = np.argsort(keys)
        sides = boxes[order].T
        columns = np.concatenate((sides, ((sides[2] - sides[0]) * (sides[3] - sides[1]))[None]))
        lines.append(_Line(order, columns, keys[order]))
    return lines


def _widths(line: _Line) -> Doubles:
    widths: Doubles = np.maximum(line.columns[2] - line.columns[0], 0)
    return widths


def _overlapping(
    ones: _Line, others: _Line, first: Ints, last: Ints, iou_threshold: float
) -> tuple[Ints, Ints]:
    """Pairs that overlap by more than the threshold, each of ``ones`` with the others from first to last."""
    found = list(_found(ones, others, first, last, iou_threshold))
    return np.concatenate([one for one, _ in found]), np.concatenate([other for _, other in found])


def _found(
    ones: _Line, others: _Line, first: Ints, last: Ints, iou_threshold: float
) -> Iterator[tuple[Ints, Ints]]:
    tops = ones.columns[1], others.columns[1]
    with np.errstate(over="ignore"):
        reach = (1 - iou_threshold) / max(iou_threshold, LEAST) * (ones.columns[3] - tops[0])
    reach += ROUNDING * (abs(tops[0]).max(initial=0) + abs(tops[1]).max(initial=0))
    least, most = tops[0] - reach, tops[0] + reach
    counts = np.maximum(last - first, 0)
    ends = np.cumsum(counts)
    shifts = first - (ends - counts)
    begin = 0
    yield np.empty(0, np.int64), np.empty(0, np.int64)
    while begin < len(counts):
        before = ends[begin] - counts[begin]
        end = max(int(np.searchsorted(ends, before + PAIRS, side="right")), begin + 1)
        rows, some = slice(begin, end), counts[begin:end]
        other = np.arange(before, ends[end - 1]) + np.repeat(shifts[rows], some)
        top = tops[1][other]
        near = np.flatnonzero((top >= np.repeat(least[rows], some)) & (top <= np.repeat(most[rows], some)))
        one, other = np.repeat(np.arange(begin, end), some)[near], other[near]
        over = _overlap(ones.columns[:, one], others.columns[:, other], iou_threshold)
        yield one[over], other[over]
        begin = end


def _overlap(a: Doubles, b: Doubles, iou_threshold: float) -> Bools:
    """Whether boxes overlap by more than the threshold: (5, p) corners and areas -> (p,).

    Where two share an area, neither is empty, so the division is sound; else it is 0 or not a number.
    """
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        over: Bools = inter / (a[4] + b[4] - inter) > iou_threshold
    return over
