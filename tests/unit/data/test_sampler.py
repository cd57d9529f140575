from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_yolo.data.sampler import StepSampler, Stream, epoch_order, keyed_generator, rect_shapes

counts = st.integers(1, 97)
batches = st.integers(1, 20)
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**40)
epochs = st.integers(0, 300)


def plan(count: int, batch: int, rank: int = 0, size: int = 1, seed: int = 0) -> StepSampler:
    return StepSampler(count, batch, rank, size, seed=seed, shuffle=True, shape=(64, 96))


def seen_by(sampler: StepSampler, epoch: int, start: int = 0) -> list[list[int]]:
    steps = range(start, sampler.batches_per_epoch)
    return [[key.index for key in sampler.rank_keys(epoch, batch)] for batch in steps]


@given(counts, batches, sizes, seeds, epochs)
def test_every_image_once_an_epoch_whatever_the_number_of_ranks(
    count: int, batch: int, size: int, seed: int, epoch: int
) -> None:
    alone = seen_by(plan(count, batch, seed=seed), epoch)
    ranks = [seen_by(plan(count, batch, rank, size, seed), epoch) for rank in range(size)]
    together = [list(chain.from_iterable(slices)) for slices in zip(*ranks, strict=True)]
    assert together == alone
    assert sorted(chain.from_iterable(alone)) == list(range(count))
    assert [len(step) for step in alone[:-1]] == [batch] * (len(alone) - 1)
    assert 1 <= len(alone[-1]) <= batch


@given(counts, batches, sizes)
def test_slices_of_a_step_differ_by_one_image_at_most(count: int, batch: int, size: int) -> None:
    lengths = [len(plan(count, batch, rank, size).rank_keys(0, 0)) for rank in range(size)]
    assert max(lengths) - min(lengths) <= 1
    assert sum(lengths) == plan(count, batch).images_in(0, 0)


@given(counts, batches, st.data())
def test_resume_from_a_step_gives_the_rest_of_the_same_sequence(
    count: int, batch: int, data: st.DataObject
) -> None:
    whole = seen_by(plan(count, batch), 3)
    start = data.draw(st.integers(0, len(whole)))
    assert seen_by(plan(count, batch), 3, start) == whole[start:]


@given(seeds, epochs)
def test_epochs_and_seeds_give_different_orders(seed: int, epoch: int) -> None:
    here = epoch_order(50, seed, epoch, True)
    assert sorted(here.tolist()) == list(range(50))
    assert not np.array_equal(here, epoch_order(50, seed, epoch + 1, True))
    assert not np.array_equal(here, epoch_order(50, seed + 1, epoch, True))


@given(st.integers(20, 97), batches, epochs)
def test_each_epoch_has_its_own_steps(count: int, batch: int, epoch: int) -> None:
    assert seen_by(plan(count, batch), epoch) != seen_by(plan(count, batch), epoch + 1)


def test_without_shuffle_every_epoch_has_the_order_of_the_data_set() -> None:
    sampler = StepSampler(5, 2, 0, 1, seed=1, shuffle=False, shape=(32, 32))
    assert seen_by(sampler, 0) == seen_by(sampler, 9) == [[0, 1], [2, 3], [4]]


def test_keys_name_epoch_and_shape() -> None:
    key = plan(5, 2).rank_keys(7, 0)[0]
    assert (key.epoch, key.height, key.width) == (7, 64, 96)


def test_the_shared_order_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, 0, 0, True)[0] = 3


def test_the_numbers_of_streams_are_for_ever() -> None:
    """Another number is another order, also for a run that is resumed; an equal one is the same stream."""
    assert {name: int(stream) for name, stream in Stream.__members__.items()} == {
        "ORDER": 0,
        "SAMPLE": 1,
        "DIGITS": 2,
        "CHECK": 3,
        "DRAWS": 4,
    }


def test_streams_and_keys_share_no_numbers() -> None:
    keys = [(Stream.ORDER, 0), (Stream.SAMPLE, 0), (Stream.ORDER, 0, 0), (Stream.ORDER, 1), (Stream.ORDER,)]
    drawn = [tuple(keyed_generator(5, *key).integers(2**62, size=2)) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn[0] == tuple(keyed_generator(5, *keys[0]).integers(2**62, size=2))


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=40), batches)
def test_rect_shapes_hold_their_images_and_are_minimal(images: list[tuple[int, int]], batch: int) -> None:
    heights, widths = np.array(images).T
    order, shapes = rect_shapes(heights, widths, imgsz=320, stride=32, batch=batch, pad=0)
    assert sorted(order.tolist()) == list(range(len(images)))
    ratios = (heights / widths)[order]
    assert (np.diff(ratios) >= 0).all()
    for number, (height, width) in enumerate(shapes):
        members = order[number * batch : (number + 1) * batch]
        longest = np.maximum(heights[members], widths[members])
        needed = [float((side[members] * 320 / longest).max()) for side in (heights, widths)]
        for side, need in zip((height, width), needed, strict=True):
            assert side % 32 == 0
            assert need - 1e-6 <= side < need + 32 + 1e-6


def test_rect_shapes_of_yolov5s_validation() -> None:
    # In strides of 32 px: 480 x 640 takes ceil(0.75 * 20 + 0.5) = 16 by ceil(20 + 0.5) = 21,
    # 960 x 640 takes 21 by ceil(2 / 3 * 20 + 0.5) = 14.
    order, shapes = rect_shapes([480, 960, 480], [640, 640, 640], imgsz=640, stride=32, batch=2)
    assert order.tolist() == [0, 2, 1]
    assert shapes == ((512, 672), (672, 448))


def test_rect_shapes_on_the_edge_of_a_stride() -> None:
    """The margin of validation is half a stride, not a hair more; a full side without a margin gets none."""
    assert rect_shapes([304], [640], imgsz=640, stride=32, batch=1)[1] == ((320, 672),)
    for height, width in ((640, 320), (320, 640)):
        assert rect_shapes([height], [width], imgsz=640, stride=32, batch=1, pad=0)[1] == ((height, width),)


def test_images_of_one_shape_keep_their_order() -> None:
    order, _ = rect_shapes([480] * 100, [640] * 100, imgsz=64, stride=32, batch=8)
    assert order.tolist() == list(range(100))


def test_shapes_belong_to_global_batches() -> None:
    order, shapes = rect_shapes([10, 20, 10, 40], [20, 20, 40, 20], imgsz=64, stride=32, batch=2, pad=0)
    ranks = [
        StepSampler(4, 2, rank, 2, seed=0, shuffle=False, shape=shapes, order=order) for rank in range(2)
    ]
    for batch in range(2):
        keys = [key for rank in ranks for key in rank.rank_keys(0, batch)]
        assert [key.index for key in keys] == order[2 * batch : 2 * batch + 2].tolist()
        assert {(key.height, key.width) for key in keys} == {shapes[batch]}
        assert ranks[0].shape_of(batch) == ranks[1].shape_of(batch) == shapes[batch]


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 2},
        {"size": 0},
        {"global_batch": 0},
        {"shape": [(32, 32)] * 3},
        {"shape": [(32, 32)] * 2, "shuffle": True},
        {"order": np.arange(3)},
        {"order": np.arange(4), "shuffle": True},
    ],
)
def test_contradictions_are_refused(change: dict[str, object]) -> None:
    good = {
        "count": 4,
        "global_batch": 2,
        "rank": 0,
        "size": 2,
        "seed": 0,
        "shuffle": False,
        "shape": (32, 32),
    }
    StepSampler(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        StepSampler(**{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [-1, 3])
def test_a_step_outside_the_epoch_is_an_error(batch: int) -> None:
    with pytest.raises(IndexError):
        plan(5, 2).global_indices(0, batch)


def test_an_empty_data_set_has_no_step() -> None:
    assert plan(0, 4).batches_per_epoch == 0
