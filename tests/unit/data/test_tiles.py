"""Pictures drawn straight into the input: the pixels are those that a canvas would show, built and warped."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from horovod_yolo.core.types import Image, SampleKey
from horovod_yolo.data.geometry import Matrix, shift, warp_boxes
from horovod_yolo.data.layout import Layout, mosaic, single
from horovod_yolo.data.letterbox import boxes_to_input
from horovod_yolo.data.tiles import draw, is_upright, reaches

Array = NDArray[np.float64]
GREY = 114
HEIGHT, WIDTH = 96, 120
SIZES = ((90, 120), (131, 77), (61, 200), (48, 40))  # height, width
KINDS = ("upright", "turned", "perspective")


def smooth(height: int, width: int, phase: float) -> Image:
    """Waves that change by less than four levels from one pixel to the next at any size used here."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(2 * math.pi * (a * x + b * y) + phase) for a, b in ((1, 0), (0, 1), (0.7, -0.8))]
    return np.asarray(np.stack(waves, axis=-1) * 50 + 128, np.uint8)


def rough(height: int, width: int, seed: int) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def homography_of(kind: str, seed: int, canvas: tuple[int, int], zoom: float | None = None) -> Matrix:
    """From the canvas's middle to somewhere near the input's."""
    rng = np.random.default_rng(seed)
    zoom = float(rng.uniform(0.5, 1.5)) if zoom is None else zoom
    angle = 0.0 if kind == "upright" else float(rng.uniform(-0.6, 0.6))
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    bend = rng.uniform(-1e-3, 1e-3, 2) if kind == "perspective" else (0.0, 0.0)
    to = rng.uniform(0.4, 0.6, 2) * (WIDTH, HEIGHT)
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    return (
        shift(*to)
        @ turn
        @ np.array([[1, 0, 0], [0, 1, 0], [*bend, 1]])
        @ shift(-canvas[1] / 2, -canvas[0] / 2)
    )


def bilinear(image: NDArray[np.generic], x: Array, y: Array) -> Array:
    """Values at continuous coordinates; what lies outside is the nearest pixel."""
    height, width = image.shape[:2]
    x, y = (x - 0.5).clip(0, width - 1), (y - 0.5).clip(0, height - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    share_x, share_y = (x - left)[..., None], (y - top)[..., None]
    upper = image[top, left] * (1 - share_x) + image[top, right] * share_x
    lower = image[below, left] * (1 - share_x) + image[below, right] * share_x
    return np.asarray(upper * (1 - share_y) + lower * share_y, np.float64)


def seen_from(to: Matrix, height: int, width: int) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Where the middles of the input's pixels come from, and which of them from before the viewer."""
    y, x = np.mgrid[:height, :width] + 0.5
    source = np.stack((x, y, np.ones_like(x)), axis=-1) @ np.linalg.inv(to).T
    return source[..., 0] / source[..., 2], source[..., 1] / source[..., 2], source[..., 2] > 0


def on_a_canvas(pictures: dict[int, Image], layout: Layout, homography: Matrix) -> tuple[Array, Array]:
    """The slow and obvious way: the canvas at its full size, then each pixel of the input.

    Returns (HEIGHT, WIDTH, 3) values and, (HEIGHT, WIDTH), how far each pixel's middle is from an edge of a
    picture, in pixels of the canvas.
    """
    rows, columns = layout.canvas
    canvas, edge = np.full((rows, columns, 3), float(GREY)), np.full((rows, columns), 1e9)
    y, x = np.mgrid[:rows, :columns] + 0.5
    for position, place_of in layout.pictures:
        picture = pictures[position]
        fit, (x1, y1, x2, y2) = place_of(*picture.shape[:2])
        inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        values = bilinear(picture, (x - fit.pad_left) / fit.gain_x, (y - fit.pad_top) / fit.gain_y)
        canvas[inside] = values[inside]
        beside_x, beside_y = np.maximum(x1 - x, x - x2), np.maximum(y1 - y, y - y2)
        edge = np.minimum(edge, np.abs(np.maximum(beside_x, beside_y)))
    x, y, before = seen_from(homography, HEIGHT, WIDTH)
    outside = ~before | (x < 0) | (y < 0) | (x > columns) | (y > rows)
    values, distance = bilinear(canvas, x, y), bilinear(edge[..., None], x, y)[..., 0]
    values[outside] = GREY
    distance[(np.abs(x) < 2) | (np.abs(y) < 2) | (np.abs(x - columns) < 2) | (np.abs(y - rows) < 2)] = 0
    return values, distance


def drawn(pictures: dict[int, Image], layout: Layout, homography: Matrix) -> tuple[Image, list[Matrix]]:
    image = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
    maps = [
        draw(image, pictures[position], place_of(*pictures[position].shape[:2]), homography)
        for position, place_of in layout.pictures
    ]
    return image, maps


def four(seed: int) -> Layout:
    return mosaic(np.random.default_rng(seed), SampleKey(0, 0, HEIGHT, WIDTH), len(SIZES))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_mosaic_is_what_a_canvas_would_show(kind: str, seed: int) -> None:
    """But for the pixels next to a picture's edge, which one of the two sides has to itself."""
    pictures = {i: smooth(*size, phase=i) for i, size in enumerate(SIZES)}
    layout = four(seed)
    homography = homography_of(kind, seed, layout.canvas)
    expected, distance = on_a_canvas(pictures, layout, homography)
    image, _ = drawn(pictures, layout, homography)
    off = np.abs(image - expected).max(axis=-1)
    away = distance > 2.5
    assert away.mean() > 0.6
    # An upright picture is moved by up to half of one of its pixels, which is up to three of the input here.
    assert off[away].max() <= (8 if kind == "upright" else 4)
    assert off[away].mean() <= 1.2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reduction", [1, 2])
def test_pixels_follow_the_map_that_is_returned(kind: str, seed: int, reduction: int) -> None:
    """Noise shows a shift by a tenth of a pixel. A reduced picture's last row may stand for half a row."""
    height, width = 81, 107
    picture = rough(-(-height // reduction), -(-width // reduction), seed)
    layout = single(SampleKey(0, 0, HEIGHT, WIDTH))
    place = layout.pictures[0][1](height, width)
    homography = homography_of(kind, seed, layout.canvas, zoom=1.0 + 0.2 * seed)
    image = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
    used = draw(image, picture, place, homography)
    x, y, before = seen_from(used, HEIGHT, WIDTH)
    in_window = before & (x > place.window_xyxy[0] + 1) & (x < place.window_xyxy[2] - 1)
    in_window &= (y > place.window_xyxy[1] + 1) & (y < place.window_xyxy[3] - 1)
    rim = [0, 1, -2, -1]
    in_window[rim] = in_window[:, rim] = False  # a resize knows nothing beyond the part it is given
    # From the canvas to the original, and from there to the picture that is given.
    x = (x - place.fit.pad_left) / place.fit.gain_x / reduction
    y = (y - place.fit.pad_top) / place.fit.gain_y / reduction
    off = np.abs(bilinear(picture, x, y) - image).max(axis=-1)[in_window]
    assert in_window.mean() > 0.3
    # OpenCV's warps round places to a 32nd of a pixel, its resize weights to a 2048th.
    assert off.max() <= (2 if kind == "upright" else 16)
    assert np.abs(used - homography)[:2].max() == 0 or is_upright(homography)


@pytest.mark.parametrize("seed", range(6))
def test_an_upright_picture_is_moved_by_half_of_its_pixels_at_most(seed: int) -> None:
    layout = four(seed)
    pictures = {i: rough(*size, i) for i, size in enumerate(SIZES)}
    homography = homography_of("upright", seed, layout.canvas)
    _, maps = drawn(pictures, layout, homography)
    for (position, place_of), used in zip(layout.pictures, maps, strict=True):
        place = place_of(*SIZES[position])
        if not reaches(place, homography, HEIGHT, WIDTH):
            continue
        window = np.array([place.window_xyxy], np.float32)
        edges = (warp_boxes(window, each)[0].clip(0, (WIDTH, HEIGHT) * 2) for each in (homography, used))
        expected, found = edges
        of_a_pixel = homography[0, 0] * max(place.fit.gain_x, place.fit.gain_y)
        assert np.abs(expected - found).max() <= 0.5 * of_a_pixel + 0.51


@pytest.mark.parametrize("kind", ["upright", "turned"])
@pytest.mark.parametrize("seed", range(8))
def test_there_are_no_gaps_between_pictures(kind: str, seed: int) -> None:
    """Four white pictures that cover the canvas leave grey only what the canvas does not reach."""
    layout = four(seed)
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    homography = homography_of(kind, seed, layout.canvas)
    image = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
    windows = []
    for _, place_of in layout.pictures:
        place = place_of(HEIGHT, WIDTH)
        windows.append(place.window_xyxy)
        draw(image, white, place, homography)
    left, top, right, bottom = (np.array(windows).T[i] for i in range(4))
    x, y, _ = seen_from(homography, HEIGHT, WIDTH)
    inside = (x > left.min() + 1) & (x < right.max() - 1) & (y > top.min() + 1) & (y < bottom.max() - 1)
    outside = (x < left.min() - 2) | (x > right.max() + 2) | (y < top.min() - 2) | (y > bottom.max() + 2)
    assert (image[inside] == 255).all()
    assert (image[outside] == GREY).all()


@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.floats(0.3, 2.5))
@settings(max_examples=60, deadline=None)
def test_what_does_not_reach_the_input_leaves_no_pixel_and_no_box(kind: str, seed: int, zoom: float) -> None:
    layout = four(seed)
    homography = homography_of(kind, seed, layout.canvas, zoom)
    for position, place_of in layout.pictures:
        place = place_of(*SIZES[position])
        if reaches(place, homography, HEIGHT, WIDTH):
            continue
        image = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
        used = draw(image, rough(*SIZES[position], 0), place, homography)
        assert (image == GREY).all()
        rows, columns = SIZES[position]
        whole = boxes_to_input(np.array([[0, 0, columns, rows]], np.float32), place.fit)
        whole = whole.clip(np.array(place.window_xyxy[:2] * 2), np.array(place.window_xyxy[2:] * 2))
        box = warp_boxes(whole.astype(np.float32), used)[0].clip(0, (WIDTH, HEIGHT) * 2)
        assert (box[2:] - box[:2]).prod() == 0


def test_a_picture_much_larger_than_the_input_is_averaged() -> None:
    """Stripes of single pixels become grey, upright or turned; samples of two would show some pattern."""
    stripes = np.zeros((960, 1200, 3), np.uint8)
    stripes[::2] = 200
    layout = single(SampleKey(0, 0, HEIGHT, WIDTH))
    for kind in ("upright", "turned"):
        image, _ = drawn({0: stripes}, layout, homography_of(kind, 0, layout.canvas, zoom=0.7))
        inner = image[HEIGHT // 2 - 15 : HEIGHT // 2 + 15, WIDTH // 2 - 15 : WIDTH // 2 + 15]
        assert np.abs(inner.astype(int) - 100).max() <= 2


def test_a_picture_of_one_pixel_can_be_drawn() -> None:
    layout = single(SampleKey(0, 0, HEIGHT, WIDTH))
    for kind in KINDS:
        for height, width in ((1, 1), (1, 3000), (3000, 1)):
            picture = np.full((height, width, 3), 7, np.uint8)
            image, _ = drawn({0: picture}, layout, homography_of(kind, 1, layout.canvas, zoom=1.4))
            assert set(np.unique(image)) <= {7, GREY}
