from __future__ import annotations

import numpy as np
import pytest
import torch

from horovod_yolo.core.boxes import xywh_to_xyxy
from horovod_yolo.core.types import SampleKey
from horovod_yolo.data.augment import Sample, evaluation_sample
from horovod_yolo.data.collate import collate
from tests.unit.data.scenes import noise_scenes

HEIGHT, WIDTH = 64, 96
NOISE = noise_scenes(6, seed=4)


def samples() -> list[Sample]:
    keys = [SampleKey(0, index, HEIGHT, WIDTH) for index in (4, 0, 5, 2)]
    return [evaluation_sample(key, NOISE.annotations, NOISE.load) for key in keys]


def test_a_batch_holds_its_samples_in_order() -> None:
    made = samples()
    batch = collate(made, HEIGHT, WIDTH)
    assert batch.images.shape == (4, 3, HEIGHT, WIDTH) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    assert batch.indices.tolist() == [4, 0, 5, 2]
    assert len(batch) == len(batch.letterboxes) == 4
    for position, sample in enumerate(made):
        assert np.array_equal(batch.images[position].permute(1, 2, 0).numpy(), sample.image)
        mine = batch.targets.image == position
        assert batch.targets.classes[mine].tolist() == sample.classes.tolist()
        boxes_xyxy = xywh_to_xyxy(batch.targets.boxes_xywhn[mine]) * torch.tensor([WIDTH, HEIGHT] * 2)
        np.testing.assert_allclose(boxes_xyxy.numpy(), sample.boxes_xyxy, atol=1e-4)
        assert batch.letterboxes[position] == sample.letterbox


def test_no_sample_makes_an_empty_batch_of_the_right_shape() -> None:
    batch = collate([], HEIGHT, WIDTH)
    assert len(batch) == 0
    assert batch.images.shape == (0, 3, HEIGHT, WIDTH) and batch.images.dtype == torch.uint8
    assert batch.targets.boxes_xywhn.shape == (0, 4)
    assert [t.dtype for t in (batch.targets.image, batch.targets.classes, batch.indices)] == [torch.int64] * 3
    assert batch.targets.boxes_xywhn.dtype == torch.float32


def test_samples_without_boxes_have_no_targets() -> None:
    bare = [
        Sample(s.image, np.zeros(0, np.int64), np.zeros((0, 4), np.float32), s.letterbox, s.index)
        for s in samples()
    ]
    batch = collate(bare, HEIGHT, WIDTH)
    assert len(batch) == 4 and batch.targets.boxes_xywhn.shape == (0, 4)


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="sample 4"):
        collate(samples(), HEIGHT, WIDTH + 32)
