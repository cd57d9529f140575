"""Prediction: inputs as small as the stride allows, in batches of one shape, results in the order given."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Image
from horovod_yolo.data.letterbox import least_input
from horovod_yolo.prediction.predict import MOST_WAITING, predict_images
from tests.helpers.tiny import tiny_detector

SHAPES = ((48, 96), (96, 48), (30, 96), (96, 96), (48, 96), (96, 48), (47, 96), (10, 300))  # rows, columns
predict = partial(
    predict_images,
    imgsz=96,
    precision=Precision(device=torch.device("cpu"), dtype=torch.float64),
    conf_threshold=1e-6,
    max_detections=5,
)


def picture(place: int) -> Image:
    size = (*SHAPES[place % len(SHAPES)], 3)
    return np.random.default_rng(place).integers(0, 256, size, dtype=np.uint8)


def shapes_seen(model: nn.Module) -> list[tuple[int, int, int]]:
    """Grows by images, height and width of each pass."""
    shapes: list[tuple[int, int, int]] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        images, _, height, width = given[0].shape
        shapes.append((images, height, width))

    model.register_forward_pre_hook(note)
    return shapes


@pytest.mark.parametrize(
    ("image", "side", "stride", "expected"),
    [
        ((480, 640), 320, 32, (256, 320)),
        ((640, 480), 320, 32, (320, 256)),
        ((640, 640), 320, 32, (320, 320)),
        ((1080, 1920), 640, 32, (384, 640)),
        ((321, 640), 640, 32, (352, 640)),
        ((320, 640), 640, 32, (320, 640)),
        ((1, 3000), 64, 32, (32, 64)),
        ((720, 1280), 640, 64, (384, 640)),
        ((480, 640), 320, 320, (320, 320)),
    ],
)
def test_the_smallest_input_of_whole_strides(
    image: tuple[int, int], side: int, stride: int, expected: tuple[int, int]
) -> None:
    assert least_input(*image, side, stride) == expected


def test_rectangles_go_in_batches_of_one_shape_and_come_back_in_order() -> None:
    model, images = tiny_detector(), [picture(place) for place in range(len(SHAPES))]
    seen = shapes_seen(model)
    found = predict(model, images, batch=2)
    assert sorted(seen) == [(1, 16, 96), (1, 32, 96), (1, 48, 96), (1, 96, 96), (2, 48, 96), (2, 96, 48)]
    alone = [predict(model, [image])[0] for image in images]
    for image, one, other in zip(images, found, alone, strict=True):
        assert len(one) == 5
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy)
        torch.testing.assert_close(one.scores, other.scores)
        assert (one.boxes_xyxy[:, 2:] <= torch.tensor(image.shape[1::-1])).all()
    assert len({tuple(one.scores.tolist()) for one in found}) == len(images)


def test_squares_where_they_are_asked_for() -> None:
    model = tiny_detector()
    seen = shapes_seen(model)
    predict(model, map(picture, range(5)), rect=False, batch=3)
    assert seen == [(3, 96, 96), (2, 96, 96)]


def test_few_inputs_wait_however_many_shapes_there_are() -> None:
    """Images are read as they are needed; eleven shapes by turns fill no batch of 20 for long."""
    model, read, done, most = tiny_detector(), 0, 0, 0
    sizes = [(rows, 96) for rows in range(16, 112, 16)] + [(96, columns) for columns in range(16, 96, 16)]

    def images() -> Iterator[Image]:
        nonlocal read
        for rows, columns in sizes * 20:
            read += 1
            yield np.zeros((rows, columns, 3), np.uint8)

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal done, most
        most = max(most, read - done)
        done += len(given[0])

    model.register_forward_pre_hook(note)
    assert len(predict(model, images(), batch=20)) == done == 220
    assert most == 20 * MOST_WAITING
