from __future__ import annotations

import random
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from horovod_yolo.core.types import Floats, SampleKey
from horovod_yolo.data import augment as augmenting
from horovod_yolo.data.augment import (
    AugmentParams,
    EvaluationTransform,
    Sample,
    TrainTransform,
    augment,
    evaluation_sample,
)
from horovod_yolo.data.letterbox import GREY, boxes_to_input, letterbox
from tests.unit.data.scenes import RED, noise_scenes, painted_scenes, scenes

STILL = AugmentParams(
    hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0, mixup=0, albumentations=False
)
EVERYTHING = AugmentParams(degrees=10, shear=4, perspective=3e-4, flipud=0.5, mosaic=0.7, mixup=0.5)
PAINTED = painted_scenes()
NOISE = noise_scenes()


def red_extents(image: NDArray[np.uint8], minimum: int = 128) -> Floats:
    """Box around the pixels that are mostly red, (4,)."""
    mask = (image[..., 0] >= minimum) & (image[..., 1] < 64) & (image[..., 2] < 64)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def paint(index: int, params: AugmentParams, height: int = 160, width: int = 192, epoch: int = 0) -> Sample:
    return augment(SampleKey(epoch, index, height, width), PAINTED.annotations, PAINTED.load, params, seed=3)


def same(a: Sample, b: Sample) -> bool:
    return all(
        np.array_equal(x, y)
        for x, y in ((a.image, b.image), (a.classes, b.classes), (a.boxes_xyxy, b.boxes_xyxy))
    )


@pytest.mark.parametrize("index", range(len(PAINTED.images)))
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"fliplr": 1.0},
        {"flipud": 1.0},
        {"flipud": 1.0, "fliplr": 1.0},
        {"scale": 0.3, "translate": 0.1},
        {"scale": 0.3, "translate": 0.1, "fliplr": 1.0},
        {"perspective": 5e-4},
    ],
)
def test_boxes_stay_on_their_pixels(index: int, change: dict[str, float]) -> None:
    sample = paint(index, replace(STILL, **change))
    assert sample.classes.tolist() == [index]
    slack = 8 if "perspective" in change else 1
    assert np.abs(sample.boxes_xyxy[0] - red_extents(sample.image)).max() <= slack


@pytest.mark.parametrize("index", range(len(PAINTED.images)))
@pytest.mark.parametrize(
    "change", [{"degrees": 20.0}, {"shear": 10.0}, {"perspective": 5e-4, "degrees": 15.0}]
)
def test_boxes_surround_rotated_pixels_and_touch_them(index: int, change: dict[str, float]) -> None:
    """An upright box around a turned rectangle: nothing sticks out and every side is reached."""
    sample = paint(index, replace(STILL, **change))
    painted, box = red_extents(sample.image), sample.boxes_xyxy[0]
    assert (painted[:2] >= box[:2] - 1).all()
    assert (painted[2:] <= box[2:] + 1).all()
    assert np.abs(painted - box).max() <= 4  # thin corners are not mostly red


@pytest.mark.parametrize("shape", [(160, 160), (128, 224)])
@pytest.mark.parametrize("epoch", range(8))
def test_mosaic_boxes_cover_every_painted_pixel(epoch: int, shape: tuple[int, int]) -> None:
    params = replace(STILL, mosaic=1.0, scale=0.4, translate=0.1, fliplr=0.5)
    sample = paint(epoch, params, *shape, epoch=epoch)
    assert sample.image.shape == (*shape, 3)
    red = (sample.image[..., 0] > 128) & (sample.image[..., 1] < 64)
    for box in sample.boxes_xyxy:
        x1, y1, x2, y2 = box.round().astype(int)
        inside = red[y1:y2, x1:x2]
        # Tight: the outermost rows and columns (bar one for rounding) show paint.
        assert inside[:2].any() and inside[-2:].any() and inside[:, :2].any() and inside[:, -2:].any()
        red[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
    # What is left belongs to boxes dropped because less than a tenth of them is in view.
    assert red.sum() <= 0.1 * 130 * 130 * (4 - len(sample.boxes_xyxy))


def test_a_mosaics_boxes_end_where_its_canvas_ends() -> None:
    """What the canvas cuts off a box is gone, also when it is asked how much of the box is left."""
    height, width = 96, 128
    image = np.zeros((height, width, 3), np.uint8)
    image[8:90, 4:124] = RED
    everywhere = scenes([image], [[0]], [[[4, 8, 124, 90]]], [np.zeros(1, bool)])
    # The whole canvas is in view, and some grey around it.
    homography = np.array([[0.4, 0, 9], [0, 0.4, 7], [0, 0, 1]])
    ends = 9 + 0.8 * width, 7 + 0.8 * height
    cut = 0
    for epoch in range(30):
        key = SampleKey(epoch, 0, height, width)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(augmenting, "_random_homography", lambda *_: (homography, 0.4))
            params = replace(STILL, mosaic=1.0)
            sample = augment(key, everywhere.annotations, everywhere.load, params, 0)
        left, top, right, bottom = sample.boxes_xyxy.T
        # Pictures are moved by up to half of one of their pixels.
        assert (left > 8.5).all() and (top > 6.5).all()
        assert (right < ends[0] + 0.5).all() and (bottom < ends[1] + 0.5).all()
        cut += int(((right > ends[0] - 0.5) | (left < 9.5)).sum())
        for x1, y1, x2, y2 in sample.boxes_xyxy.round().astype(int).tolist():
            assert (sample.image[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] == RED).all()
    assert cut > 10, "some boxes were cut"


def test_how_much_of_a_box_is_left_is_asked_at_its_new_size() -> None:
    """A fifth as wide and as high is a 25th of the area, and yet all of it."""
    widths = []
    for epoch in range(20):
        for index in range(len(PAINTED.images)):
            sample = paint(index, replace(STILL, scale=0.8), epoch=epoch)
            x1, y1, x2, y2 = painted = red_extents(sample.image)
            if x1 > 0 and y1 > 0 and x2 < 192 and y2 < 160:  # all in view
                assert np.abs(sample.boxes_xyxy - painted).max() <= 1
                assert len(sample.boxes_xyxy) == 1
                before = paint(index, STILL).boxes_xyxy[0]
                widths.append((x2 - x1) / (before[2] - before[0]))
    assert min(widths) < 0.25 and len(widths) > 50


def test_mosaic_shows_four_images_and_takes_partners_from_the_whole_set() -> None:
    classes = [set(paint(0, replace(STILL, mosaic=1.0), epoch=e).classes.tolist()) for e in range(60)]
    assert set().union(*classes) == set(range(len(PAINTED.images)))
    assert max(map(len, classes)) >= 3


def test_mixup_blends_two_mosaics_and_keeps_both_ones_boxes() -> None:
    single, mixed = (
        [paint(0, replace(STILL, mosaic=1.0, mixup=mixup), epoch=e) for e in range(20)] for mixup in (0, 1)
    )
    assert sum(len(s.classes) for s in mixed) > 1.5 * sum(len(s.classes) for s in single)
    for one, two in zip(single, mixed, strict=True):
        assert np.array_equal(two.boxes_xyxy[: len(one.boxes_xyxy)], one.boxes_xyxy)
    reds = np.concatenate([s.image[..., 0][s.image[..., 1] < 20] for s in mixed])
    assert ((reds > 80) & (reds < 175)).any()  # half-transparent paint on black


def test_without_mosaics_images_are_mixed_only_where_that_is_wanted() -> None:
    params = replace(STILL, mixup=1.0)
    for epoch in range(10):
        alone = paint(0, STILL, epoch=epoch)
        assert same(paint(0, params, epoch=epoch), alone), "YOLOv5 mixes mosaics only"
        mixed = paint(0, replace(params, mixes_singles=True), epoch=epoch)
        assert len(mixed.classes) == 2 and np.array_equal(mixed.boxes_xyxy[:1], alone.boxes_xyxy)
        other = paint(int(mixed.classes[1]), STILL)
        assert np.array_equal(mixed.boxes_xyxy[1:], other.boxes_xyxy)
        ratio = mixed.image[alone.image > 0].mean() / 255
        assert 0.2 < ratio < 0.9


def test_cutmix_is_for_any_image_and_its_partner_is_made_alike() -> None:
    params = replace(STILL, cutmix=1.0, mixes_singles=True)
    mixed = [paint(0, params, epoch=epoch) for epoch in range(60)]
    assert {len(sample.classes) for sample in mixed} == {1, 2}
    for sample in mixed:
        assert np.array_equal(sample.boxes_xyxy[:1], paint(0, STILL).boxes_xyxy)
    mosaics = [paint(0, replace(params, mosaic=1.0), epoch=epoch) for epoch in range(20)]
    plain = [paint(0, replace(STILL, mosaic=1.0), epoch=epoch) for epoch in range(20)]
    assert sum(len(s.classes) for s in mosaics) > sum(len(s.classes) for s in plain)


@pytest.mark.parametrize("of_ours", [{}, {"mixes_singles": True, "cutmix": 0.5, "turns_hue": True}])
def test_images_stay_apart_where_their_keys_say_so(of_ours: dict[str, float]) -> None:
    """Nothing else changes."""
    open_ended = replace(EVERYTHING, **of_ours)  # type: ignore[arg-type]
    never = replace(open_ended, mosaic=0.0, mixup=0.0, cutmix=0.0)
    alike = []
    for epoch in range(6):
        key = SampleKey(epoch, 2, 96, 96)
        apart, mixed, expected = (
            augment(key, NOISE.annotations, NOISE.load, params, seed=1)
            for key, params in ((key._replace(apart=True), open_ended), (key, open_ended), (key, never))
        )
        assert same(apart, expected)
        alike.append(same(mixed, expected))
    assert not all(alike), "others are mixed"


@given(st.integers(0, 11), st.integers(0, 50), st.sampled_from([(96, 96), (64, 160)]))
@settings(max_examples=40)
def test_boxes_lie_inside_and_are_large_enough(index: int, epoch: int, shape: tuple[int, int]) -> None:
    sample = augment(SampleKey(epoch, index, *shape), NOISE.annotations, NOISE.load, EVERYTHING, seed=0)
    height, width = shape
    assert sample.image.shape == (height, width, 3)
    assert sample.image.dtype == np.uint8 and sample.image.flags.c_contiguous
    assert sample.boxes_xyxy.dtype == np.float32 and sample.boxes_xyxy.shape == (len(sample.classes), 4)
    assert (sample.boxes_xyxy >= 0).all()
    assert (sample.boxes_xyxy <= np.array([width, height] * 2)).all()
    assert ((sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]) > 1.99).all()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("horovod_yolo.data.colours.ALBUMENTATIONS_PROBABILITY", 0.5)


@pytest.mark.usefixtures("often")
def test_a_sample_depends_on_its_key_and_the_seed_only() -> None:
    keys = [SampleKey(epoch, index, 96, 128) for epoch in (0, 1) for index in range(6)]
    make = TrainTransform(NOISE.annotations, NOISE.load, EVERYTHING, seed=7)
    first = [make(key) for key in keys]
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    again = [make(key) for key in reversed(keys)][::-1]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.usefixtures("often")
def test_making_samples_leaves_global_random_state_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for index in range(6):
        augment(SampleKey(0, index, 64, 64), NOISE.annotations, NOISE.load, EVERYTHING, seed=0)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_epoch_seed_and_index_each_change_the_sample() -> None:
    def make(epoch: int, index: int, seed: int) -> Sample:
        return augment(SampleKey(epoch, index, 96, 96), NOISE.annotations, NOISE.load, AugmentParams(), seed)

    here = make(0, 0, 0)
    assert not any(same(here, make(*other)) for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def test_each_of_the_albumentations_changes_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """At probability 1 the red is gone, at 0 nothing changes, and boxes do not move."""
    monkeypatch.setattr("horovod_yolo.data.colours.ALBUMENTATIONS_PROBABILITY", 1.0)
    treated = paint(2, replace(STILL, albumentations=True))
    assert np.abs(treated.image[..., 0].astype(int) - treated.image[..., 1]).max() < 12  # CLAHE adds a tint
    monkeypatch.setattr("horovod_yolo.data.colours.ALBUMENTATIONS_PROBABILITY", 0.0)
    plain = paint(2, replace(STILL, albumentations=True))
    assert np.array_equal(plain.image, paint(2, STILL).image)
    assert np.array_equal(plain.boxes_xyxy, treated.boxes_xyxy)


def test_hsv_changes_colour_only_by_what_was_asked() -> None:
    still = paint(1, STILL)
    value = paint(1, replace(STILL, hsv_v=0.4))
    assert not np.array_equal(value.image, still.image)
    assert np.array_equal(value.image[..., 1] > 0, still.image[..., 1] > 0)  # red stays pure red
    ratio = value.image[still.image > 0].astype(float) / still.image[still.image > 0]
    assert 0.6 - 0.02 <= ratio.min() <= ratio.max() <= 1.4 + 0.02
    hue = paint(1, replace(STILL, hsv_h=0.5))
    assert np.array_equal(hue.image.max(2), still.image.max(2))  # value is the largest channel


def test_the_hue_goes_round_the_circle() -> None:
    """Two patches, of hue 60 and of hue 170 of 180: the one that cannot come round says by how much."""
    hsv = np.full((40, 40, 3), 255, np.uint8)
    hsv[:20, :, 0], hsv[20:, :, 0] = 60, 170
    image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    patches = scenes([image], [[]], [[]], [np.zeros(0, bool)])
    round_the_circle = 0
    for epoch in range(40):
        sample = augment(
            SampleKey(epoch, 0, 40, 40), patches.annotations, patches.load, replace(STILL, hsv_h=0.4), 0
        )
        hue = cv2.cvtColor(sample.image, cv2.COLOR_RGB2HSV)[..., 0].astype(float)
        low, high = hue[5, 5], hue[35, 35]
        factor = low / 60
        round_the_circle += factor > 1.1
        away = abs(high - factor * 170) % 180
        assert min(away, 180 - away) <= 5, (factor, high)
    assert round_the_circle > 5


def test_a_turned_hue_goes_as_far_from_any_other_and_grey_stays_grey() -> None:
    hsv = np.full((60, 40, 3), 255, np.uint8)
    hsv[:20, :, 0], hsv[20:40, :, 0] = 20, 120
    hsv[40:] = (50, 0, 128)
    image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    patches = scenes([image], [[]], [[]], [np.zeros(0, bool)])
    turns = []
    for epoch in range(40):
        params = replace(STILL, hsv_h=0.4, turns_hue=True)
        sample = augment(SampleKey(epoch, 0, 60, 40), patches.annotations, patches.load, params, 0)
        hue = cv2.cvtColor(sample.image, cv2.COLOR_RGB2HSV)[..., 0].astype(float)
        low, high = (hue[5, 5] - 20) % 180, (hue[25, 25] - 120) % 180
        assert min(abs(low - high), 180 - abs(low - high)) <= 3
        assert (sample.image[50] == 128).all()
        turns.append((low + 90) % 180 - 90)
    assert max(turns) > 50 and min(turns) < -50 and max(map(abs, turns)) <= 0.4 * 180 + 2


def test_crowds_are_left_out_of_training_and_of_validations_loss() -> None:
    index = next(i for i, r in enumerate(NOISE.annotations.records) if r.crowd.any())
    record = NOISE.annotations.records[index]
    key = SampleKey(0, index, 224, 224)
    scored = evaluation_sample(key, NOISE.annotations, NOISE.load)
    assert len(scored.classes) == (~record.crowd).sum() < len(record.classes)
    trained = augment(key, NOISE.annotations, NOISE.load, STILL, seed=0)
    assert len(trained.classes) == (~record.crowd).sum()


@pytest.mark.parametrize("shape", [(160, 160), (96, 224), (320, 64)])
def test_validation_maps_boxes_back_exactly(shape: tuple[int, int]) -> None:
    make = EvaluationTransform(NOISE.annotations, NOISE.load)
    for index, record in enumerate(NOISE.annotations.records):
        sample = make(SampleKey(0, index, *shape))
        assert sample.image.shape == (*shape, 3)
        back = sample.letterbox.to_original(torch.from_numpy(sample.boxes_xyxy))
        np.testing.assert_allclose(back.numpy(), record.boxes_xyxy[~record.crowd], atol=1e-3)
        assert (sample.letterbox.height, sample.letterbox.width) == (record.height, record.width)


def test_validation_boxes_stay_on_their_pixels() -> None:
    for index in range(len(PAINTED.images)):
        sample = evaluation_sample(SampleKey(5, index, 192, 160), PAINTED.annotations, PAINTED.load)
        assert np.abs(sample.boxes_xyxy[0] - red_extents(sample.image)).max() <= 1
        again = evaluation_sample(SampleKey(6, index, 192, 160), PAINTED.annotations, PAINTED.load)
        assert same(sample, again)


def test_an_image_that_shrinks_is_averaged_or_interpolated() -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    image[::4] = 255  # every fourth row, which an interpolation between two rows misses or overrates
    striped = scenes([image], [[]], [[]], [np.zeros(0, bool)])
    key = SampleKey(0, 0, 32, 32)
    averaged, interpolated = (
        EvaluationTransform(striped.annotations, striped.load, antialias=antialias)(key).image
        for antialias in (True, False)
    )
    assert (np.abs(averaged.astype(int) - 64) <= 1).all()
    assert np.array_equal(interpolated, cv2.resize(image, (32, 32), interpolation=cv2.INTER_LINEAR))
    assert not np.array_equal(averaged, interpolated)


def test_longest_side_leaves_a_margin() -> None:
    image = np.full((100, 200, 3), 200, np.uint8)
    canvas, fit = letterbox(image, 256, 352, longest_side=320)
    assert (fit.gain_x, fit.gain_y, fit.pad_left, fit.pad_top) == (1.6, 1.6, 16.0, 48.0)
    assert (canvas[48:208, 16:336] == 200).all()
    assert (canvas == 200).sum() == 160 * 320 * 3
    assert (canvas[:48] == GREY).all()


def test_a_scaled_copy_of_an_image_gives_the_same_boxes() -> None:
    """A cache may hold images at reduced size; boxes refer to the original."""
    image = np.zeros((300, 400, 3), np.uint8)
    image[60:120, 40:240] = RED
    full, fit = letterbox(image, 160, 160)
    small, small_fit = letterbox(image[::2, ::2], 160, 160, original=(300, 400))
    assert fit == small_fit
    box = boxes_to_input(np.array([[40, 60, 240, 120]], np.float32), small_fit)[0]
    for canvas in (full, small):
        assert np.abs(red_extents(canvas) - box).max() <= 1


def test_extreme_shapes_keep_one_pixel() -> None:
    canvas, fit = letterbox(np.full((1, 3000, 3), 9, np.uint8), 64, 64)
    assert (canvas == 9).all(2).sum() == 64
    assert fit.gain_y == 1.0
