"""A pipeline from a file: what it may be, and that each sample has its own random numbers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import SampleKey
from horovod_yolo.data.augment import AugmentParams, TrainTransform
from horovod_yolo.data.cache import ImageReader
from horovod_yolo.data.own_pipeline import load_pipeline
from horovod_yolo.data.spec import load_data_yaml
from tests.helpers.scanned import annotations_of

IMAGE = np.random.default_rng(1).integers(0, 256, (48, 80, 3), np.uint8)
BOXES = np.array([[4, 8, 24, 40], [50, 10, 79, 20]], np.float32)


def saved(folder: Path, *transforms: Any, kind: str = "yaml") -> Path:
    path = folder / f"pipeline.{kind}"
    A.save(A.Compose(list(transforms)), path, data_format=kind)
    return path


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_boxes_follow_their_image(tmp_path: Path, kind: str) -> None:
    own = load_pipeline(saved(tmp_path, A.HorizontalFlip(p=1.0), kind=kind))
    image, boxes, left = own(IMAGE, BOXES, 0)
    assert np.array_equal(image, IMAGE[:, ::-1]) and left.tolist() == [0, 1]
    np.testing.assert_allclose(boxes, [[56, 8, 76, 40], [1, 10, 30, 20]], atol=1e-3)
    assert own(IMAGE, BOXES[:0], 0)[1].shape == (0, 4)


def test_another_size_is_scaled_back_and_lost_boxes_are_dropped(tmp_path: Path) -> None:
    crop = A.Crop(x_min=0, y_min=0, x_max=40, y_max=24, p=1.0)
    image, boxes, left = load_pipeline(saved(tmp_path, crop))(IMAGE, BOXES, 0)
    assert image.shape == IMAGE.shape and left.tolist() == [0]
    np.testing.assert_allclose(boxes, [[8, 16, 48, 48]], atol=1e-3)


def test_what_is_random_follows_from_the_seed_alone(tmp_path: Path) -> None:
    """In a process that draws otherwise before, and in a copy that was sent to one."""
    nested = A.OneOf([A.GaussNoise(p=1.0), A.RandomBrightnessContrast(p=1.0)], p=0.9)
    own = load_pipeline(saved(tmp_path, A.Affine(rotate=(-20, 20), p=0.7), nested))
    first = own(IMAGE, BOXES, 7)
    np.random.seed(3)
    sent = pickle.loads(pickle.dumps(own))
    sent(IMAGE, BOXES, 8)
    for one, other in zip(first, sent(IMAGE, BOXES, 7), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(first[0], own(IMAGE, BOXES, 8)[0])


def test_samples_are_changed_by_it_each_in_its_own_way(digits: Path, tmp_path: Path) -> None:
    annotations = annotations_of(load_data_yaml(digits))
    own = load_pipeline(saved(tmp_path, A.GaussNoise(std_range=(0.2, 0.2), p=1.0)))
    still = AugmentParams(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
    load = ImageReader(annotations)
    plain, noisy = (
        TrainTransform(annotations, load, AugmentParams(**{**vars(still), **extra}), seed=1)
        for extra in ({"albumentations": False}, {"own": own})
    )
    keys = [SampleKey(epoch, index, 64, 64) for epoch in (0, 1) for index in (3, 4)]
    noise = [noisy(key).image.astype(int) - plain(key).image for key in keys]
    assert all(20 < each.std() < 80 for each in noise)
    assert len({each.tobytes() for each in noise}) == len(keys)
    again = pickle.loads(pickle.dumps(noisy))(keys[2])
    np.testing.assert_array_equal(again.image, noisy(keys[2]).image)
    np.testing.assert_allclose(again.boxes_xyxy, plain(keys[2]).boxes_xyxy, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "has no 'transform'"),
        ({"transform": {"p": 1}}, "a transform has no '__class_fullname__'"),
        ("Lambda", "it has a Lambda"),
        ("HorizontalFlop", "albumentations has no transform 'HorizontalFlop'. did you mean HorizontalFlip"),
        ("os.system", "albumentations has no transform 'os.system'"),
        ("Normalize", "Normalize cannot be used: it gives float32"),
        ("HueSaturationValue hue_shift_limit", "cannot be built"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "pipeline.json"
    if isinstance(content, str):
        name, *bad = content.split()
        transform = {"__class_fullname__": name, "p": 0.01, **dict.fromkeys(bad, "x")}
        content = {"transform": {"__class_fullname__": "Compose", "transforms": [transform]}}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        load_pipeline(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
