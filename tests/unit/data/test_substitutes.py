"""A lost image gives way to the next one of the epoch's order, the same one whoever makes the sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from horovod_yolo.core.types import Ints, LostImage, SampleKey
from horovod_yolo.data import substitutes
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.augment import AugmentParams, EvaluationTransform, Sample, TrainTransform
from horovod_yolo.data.cache import ImageReader
from horovod_yolo.data.loader import Loader
from horovod_yolo.data.read import ImageError
from horovod_yolo.data.sampler import StepSampler, epoch_order
from horovod_yolo.data.substitutes import Pictures
from tests.unit.data.scenes import noise_scenes

COUNT = 12
SCENES = noise_scenes(COUNT, seed=4)
STILL = AugmentParams(
    mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, albumentations=False
)
MIXED = AugmentParams(mosaic=1, mixup=1)


@pytest.fixture
def images(tmp_path: Path) -> Annotations:
    """The noise on the disk, where it can be lost."""
    for i, pixels in enumerate(SCENES.images):
        PIL.Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return SCENES.annotations.at(tmp_path)


def without(*lost: int) -> tuple[Annotations, object]:
    def load(position: int) -> object:
        if position in lost:
            raise ImageError(Path(f"{position}.png"), "gone")
        return SCENES.images[position]

    return SCENES.annotations, load


def taken(position: int, lost: tuple[int, ...], order: list[int]) -> int:
    """Which position's image stands for ``position``."""
    pictures = Pictures(*without(*lost), lambda: np.array(order))  # type: ignore[arg-type]
    image, record = pictures.take(position)
    found = next(i for i, other in enumerate(SCENES.images) if other is image)
    assert record.path == f"{found}.png", "an image comes with its own boxes"
    return found


def test_the_next_of_the_order_that_can_be_read_is_taken() -> None:
    order = [3, 0, 7, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert taken(0, (), order) == 0
    assert taken(0, (0,), order) == 7
    assert taken(0, (0, 7, 1), order) == 2
    assert taken(11, (11,), order) == 3, "after the last comes the first"
    assert taken(11, (11, 3), order) == 0


def test_without_an_order_nothing_is_put_in_its_place() -> None:
    with pytest.raises(ImageError, match="gone"):
        Pictures(*without(5)).take(5)  # type: ignore[arg-type]


def test_a_set_that_is_gone_is_given_up_after_a_bounded_number_of_tries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(substitutes, "MOST_IN_A_ROW", 4)
    order = list(range(COUNT))
    assert taken(2, (2, 3, 4), order) == 5
    pictures = Pictures(*without(2, 3, 4, 5), lambda: np.array(order))  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"2\.png: gone"):
        pictures.take(2)
    assert list(pictures.lost) == [2, 3, 4, 5]


def same(a: Sample, b: Sample) -> bool:
    return (
        np.array_equal(a.image, b.image)
        and np.array_equal(a.boxes_xyxy, b.boxes_xyxy)
        and np.array_equal(a.classes, b.classes)
    )


@pytest.mark.parametrize("fixed", [False, True], ids=["shuffled", "fixed order"])
def test_a_deleted_or_truncated_image_is_replaced_in_its_own_sample(images: Annotations, fixed: bool) -> None:
    order: Ints = np.arange(COUNT)[::-1].copy() if fixed else epoch_order(COUNT, 3, 2, True)
    make = TrainTransform(images, ImageReader(images), STILL, seed=3, order=order if fixed else None)
    before = make(SampleKey(2, int(order[6]), 64, 96))
    assert before.lost == () and not before.replaced
    images.image_path(int(order[5])).unlink()
    cut = images.image_path(int(order[4]))
    cut.write_bytes(cut.read_bytes()[:100])
    for place in (4, 5):
        sample = make(SampleKey(2, int(order[place]), 64, 96))
        assert same(sample, before)
        assert sample.replaced and sample.index == order[place]
    assert sample.lost == (LostImage(str(images.image_path(int(order[5]))), "no such file", int(order[5])),)


def test_partners_are_replaced_alike_and_counted_as_no_sample(images: Annotations) -> None:
    make = TrainTransform(images, ImageReader(images), MIXED, seed=0)
    keys = [SampleKey(0, i, 64, 64) for i in range(COUNT)]
    before = [make(key) for key in keys]
    images.image_path(7).unlink()
    after = [make(key) for key in keys]
    assert [sample.replaced for sample in after] == [i == 7 for i in range(COUNT)]
    changed = [not same(a, b) for a, b in zip(before, after, strict=True)]
    assert all(sample.lost for sample, differs in zip(after, changed, strict=True) if differs)
    assert 2 <= sum(changed) < COUNT, "the seed must show image 7 in some, not all, of the others"
    assert all(same(make(key), sample) for key, sample in zip(keys, after, strict=True))


def test_an_image_of_another_size_is_lost_its_boxes_would_lie_elsewhere(images: Annotations) -> None:
    record = images.records[0]
    PIL.Image.new("RGB", (record.width + 1, record.height)).save(images.image_path(0))
    now = f"{record.width + 1}x{record.height} now"
    with pytest.raises(ImageError, match=now):
        ImageReader(images)(0)


def test_validation_leaves_out_what_is_lost(images: Annotations) -> None:
    images.image_path(3).unlink()
    plan = StepSampler(COUNT, 5, 0, 1, seed=0, shuffle=False, shape=(64, 64))
    loader = Loader(EvaluationTransform(images, ImageReader(images)), plan, workers=0, pin_memory=False)
    batches = list(loader.epoch(0))
    assert [int(i) for batch in batches for i in batch.indices] == [0, 1, 2, *range(4, COUNT)]
    assert [len(batch.letterboxes) for batch in batches] == [4, 5, 2]
    assert list(loader.lost) == [str(images.image_path(3))]


def test_what_is_left_out_is_not_read_and_counts_as_replaced(images: Annotations) -> None:
    order = epoch_order(COUNT, 3, 2, True)
    make = TrainTransform(images, ImageReader(images), STILL, seed=3)
    key = SampleKey(2, int(order[4]), 64, 96)
    there = make(key, {int(order[4])})
    assert there.replaced and not there.lost and not same(there, make(key))
    images.image_path(int(order[4])).unlink()
    assert same(make(key), there), "so it does where it is lost"
