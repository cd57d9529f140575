"""Draws by the weights of classes: as often as they say, and the same for everybody."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.core.slices import Slices
from horovod_yolo.core.types import Ints
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.image_weights import ImageWeights
from horovod_yolo.data.sampler import StepSampler

NAMES = ("rare", "common", "none")


def annotations_of(classes: list[list[int]], crowds: tuple[int, ...] = ()) -> Annotations:
    """Images with objects of these classes; in those of ``crowds`` all objects are crowds."""
    records = []
    for i, own in enumerate(classes):
        boxes = np.tile(np.array([1, 1, 5, 5], np.float32), (len(own), 1))
        crowd = np.full(len(own), i in crowds)
        ids, areas = np.array(own, np.int64), np.full(len(own), 16, np.float32)
        records.append(Record(f"{i}.jpg", 10, 10, ids, boxes, crowd, areas, i))
    return Annotations.of(Path(), NAMES, records)


def scored(*values: float) -> list[dict[str, Any]]:
    """What a validation says of the classes; below 0: it has no object there."""
    return [{"mAP50-95": value, "instances": 0 if value < 0 else 3} for value in values]


def test_weights_are_those_of_yolov5_by_hand() -> None:
    weights = ImageWeights(annotations_of([[0, 1], [1, 1], [], [1], [0, 0]], crowds=(4,)))
    assert weights.of_images.tolist() == pytest.approx([1 / 1 + 1 / 4, 2 / 4, 0, 1 / 4, 0])
    assert weights.never_drawn == 2
    weights.learn(scored(0.5, 0.8, -1))
    missing = [0.5**2, 0.2**2]
    expected = [missing[0] / 1 + missing[1] / 4, 2 * missing[1] / 4, 0, missing[1] / 4, 0]
    assert weights.of_images.tolist() == pytest.approx(expected)
    weights.learn(scored(-1, 0.8, -1))  # a class that validation has not gets the mean
    assert weights.of_classes[0] == pytest.approx(0.2**2 / 1)
    weights.learn(scored(1.0, 1.0, 1.0))  # then only the numbers of objects count
    assert weights.of_images.tolist() == pytest.approx([1.25, 0.5, 0, 0.25, 0])


@pytest.mark.parametrize(
    ("found", "share"),
    [(None, 1 / 2), (scored(0.2, 0.9, -1), 0.64 / 0.65), (scored(0.5, 0.5, -1), 1 / 2)],
)
def test_counts_are_as_expected_where_one_class_is_fifty_times_as_rare(
    found: list[dict[str, Any]] | None, share: float
) -> None:
    """10 images of a rare object and 500 of a common one, over 40 epochs: within five standard deviations."""
    weights = ImageWeights(annotations_of([[0]] * 10 + [[1]] * 500))
    if found:
        weights.learn(found)
    epochs = 40
    drawn = np.bincount(np.concatenate([weights.draws(7, epoch).order for epoch in range(epochs)]))
    count = epochs * 510
    assert drawn.sum() == count
    assert abs(drawn[:10].sum() - share * count) < 5 * np.sqrt(count * share * (1 - share))
    for images in (drawn[:10], drawn[10:]):  # and within a class all alike
        mean = images.mean()
        assert abs(images - mean).max() < 5 * np.sqrt(mean) + 1


@given(st.lists(st.lists(st.integers(0, 1), max_size=3), min_size=1, max_size=40), st.integers(0, 2**40))
@settings(max_examples=50)
def test_an_image_that_is_drawn_again_is_another_sample(classes: list[list[int]], seed: int) -> None:
    if not any(classes):
        classes[0] = [1]
    weights = ImageWeights(annotations_of(classes))
    weights.learn(scored(1.0, 0.3, -1) if 1 in chain(*classes) else scored(0.3, 1.0, -1))
    draws = weights.draws(seed, 3)
    assert len(draws.order) == len(classes)
    assert len(set(zip(draws.order.tolist(), draws.times.tolist(), strict=True))) == len(classes)
    assert (weights.of_images[draws.order] > 0).all()
    for i in set(draws.order.tolist()):
        assert draws.times[draws.order == i].tolist() == list(range((draws.order == i).sum()))


def keys_of(weights: ImageWeights, rank: int, size: int, slices: int, epoch: int) -> list[list[Any]]:
    sampler = StepSampler(
        *(37, 8, rank, size),
        seed=5,
        shuffle=True,
        shape=(64, 64),
        slices=Slices.even(slices, rank, size),
        weights=weights,
    )
    return [sampler.rank_keys(epoch, batch) for batch in range(sampler.batches_per_epoch)]


@pytest.mark.parametrize("slices", [4, 7])
@pytest.mark.parametrize("epoch", [0, 1, 9])
def test_the_order_is_the_same_on_one_two_and_four_ranks(slices: int, epoch: int) -> None:
    """And for a rank that comes by the weights of a checkpoint."""

    def fresh() -> ImageWeights:
        return ImageWeights(annotations_of([[0, 1] if i % 9 == 0 else [1] * (i % 3) for i in range(37)]))

    first = fresh()
    first.learn(scored(0.31, 0.77, -1))
    alone = keys_of(first, 0, 1, slices, epoch)
    assert sum(map(len, alone)) == 37 and any(key.draw for key in chain(*alone))
    for size in (2, 4):
        ranks = []
        for rank in range(size):
            resumed = fresh()
            resumed.load_state_dict(first.state_dict())
            ranks.append(keys_of(resumed, rank, size, slices, epoch))
        assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


def test_weights_change_between_epochs_only_where_they_are_told() -> None:
    weights = ImageWeights(annotations_of([[0], [1], [1], [1]] * 20))
    before: Ints = weights.draws(0, 1).order
    assert weights.draws(0, 1).order is before and not np.array_equal(weights.draws(0, 2).order, before)
    weights.learn(scored(0.0, 0.9, -1))
    assert not np.array_equal(weights.draws(0, 1).order, before)
