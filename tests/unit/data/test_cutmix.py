"""A rectangle of another image hides nothing and shows something."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from horovod_yolo.core.types import Floats
from horovod_yolo.data.augment import _cutmix, _Scene
from horovod_yolo.data.cutmix import LEAST_SHARE, Rectangle, boxes_in, free_rectangle

HEIGHT, WIDTH = 60, 80


def boxes_of(seed: int, count: int) -> Floats:
    rng = np.random.default_rng(seed)
    corners = rng.uniform((0, 0), (WIDTH - 21, HEIGHT - 21), (count, 2))
    return np.concatenate((corners, corners + rng.uniform(3, 20, (count, 2))), axis=1).astype(np.float32)


def common(box: Floats, other: Floats) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(float(width), 0.0) * max(float(height), 0.0)


@given(st.integers(0, 10_000), st.integers(0, 6))
def test_the_rectangle_lies_in_the_image_and_touches_no_box(seed: int, count: int) -> None:
    boxes = boxes_of(seed, count)
    found = free_rectangle(np.random.default_rng(seed), boxes, HEIGHT, WIDTH)
    assert count or found is not None
    if found is not None:
        assert 0 <= found.left <= found.right <= WIDTH and 0 <= found.top <= found.bottom <= HEIGHT
        assert not any(common(box, np.array(found, np.float32)) for box in boxes)


def test_a_full_image_has_no_room() -> None:
    whole = np.array([[0, 0, WIDTH, HEIGHT]], np.float32)
    found = [free_rectangle(np.random.default_rng(seed), whole, HEIGHT, WIDTH) for seed in range(50)]
    assert all(one is None or (one.right - one.left) * (one.bottom - one.top) == 0 for one in found)


def test_areas_are_uniform_before_the_image_cuts_them() -> None:
    rng = np.random.default_rng(0)
    nothing = np.zeros((0, 4), np.float32)
    found = [free_rectangle(rng, nothing, 1000, 1000) for _ in range(2000)]
    inside = [r for r in found if r and r.left > 0 and r.top > 0 and r.right < 1000 and r.bottom < 1000]
    shapes = np.array([(r.right - r.left, r.bottom - r.top) for r in inside])
    assert np.abs(shapes[:, 0] - shapes[:, 1]).max() <= 1, "the shape of the image"
    areas = np.array([(r.right - r.left) * (r.bottom - r.top) for r in found if r]) / 1e6
    assert 0.2 < areas.mean() < 0.4 and areas.max() > 0.9  # of the uniform one the edges cut some


@given(st.integers(0, 10_000))
def test_boxes_in_a_rectangle_by_a_loop(seed: int) -> None:
    boxes, rectangle = boxes_of(seed, 8), Rectangle(10, 15, 50, 45)
    shown, cut = boxes_in(boxes, rectangle)
    expected = []
    for number, box in enumerate(boxes):
        area = float((box[2] - box[0]) * (box[3] - box[1]))
        share = common(box, np.array(rectangle, np.float32)) / area
        if abs(share - LEAST_SHARE) < 1e-5:
            return
        assert shown[number] == (share > LEAST_SHARE)
        if shown[number]:
            expected.append([max(box[0], 10), max(box[1], 15), min(box[2], 50), min(box[3], 45)])
    assert np.array_equal(cut, np.array(expected, np.float32).reshape(-1, 4))


def test_pixels_and_boxes_of_the_other_image_come_together() -> None:
    """The first is black but for its box, the second white but for its own; some cuts work, some do not."""
    first, second = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    mine, theirs = np.array([[2, 2, 30, 30]], np.float32), np.array([[45, 20, 65, 50]], np.float32)
    mixed = 0
    scenes = _Scene(first, np.array([3]), mine), _Scene(second, np.array([7]), theirs)
    for seed in range(60):
        scene = _cutmix(np.random.default_rng(seed), *scenes)
        white = (scene.image == 255).all(axis=2)
        assert not first.any(), "the given image stays"
        if len(scene.classes) == 1:
            assert not white.any() and np.array_equal(scene.boxes_xyxy, mine)
            continue
        mixed += 1
        assert scene.classes.tolist() == [3, 7] and np.array_equal(scene.boxes_xyxy[0], mine[0])
        assert not white[2:30, 2:30].any()
        x1, y1, x2, y2 = scene.boxes_xyxy[1].astype(int)
        assert white[y1:y2, x1:x2].all() and (scene.boxes_xyxy[1, :2] >= theirs[0, :2]).all()
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        assert white.sum() == len(rows) * len(columns), "one rectangle"
    assert mixed > 10
