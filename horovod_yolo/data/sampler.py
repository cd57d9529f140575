"""Which images make up which step, and the random streams they draw from.

One permutation per (seed, epoch) covers the whole data set. Step k takes a fixed run of it whatever
the number of ranks; a rank takes its slice of that run. Nothing here talks to other ranks: that all
of them arrive at the same plan follows from the arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from horovod_yolo.core.slices import Slices
from horovod_yolo.core.types import Ints, SampleKey

if TYPE_CHECKING:
    from horovod_yolo.data.image_weights import ImageWeights

Shape = tuple[int, int]  # height, width


class Stream(IntEnum):
    """What a random stream is for. Two purposes never share numbers, even with equal keys."""

    ORDER = 0
    SAMPLE = 1
    DIGITS = 2
    CHECK = 3
    DRAWS = 4


class Draws(NamedTuple):
    """Which images an epoch takes where some are drawn more often than others, in order."""

    order: Ints  # (images,) positions in the data set
    times: Ints  # (images,) how often each of them was drawn before in this epoch


def keyed_generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """A generator that depends on its arguments only (all >= 0), never on what was drawn before.

    The key goes into the spawn key because numpy pads a short seed before it, so that (1, 2) and
    (1, 2, 0) are different streams; as plain entropy they would be the same.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), *key))
    return np.random.Generator(np.random.Philox(sequence))


@lru_cache(maxsize=2)  # each process has its own: of this epoch, and of the next
def epoch_order(count: int, seed: int, epoch: int, shuffle: bool) -> Ints:
    """The order in which one epoch visits the data set: a permutation of 0..count-1, (count,) int64.

    The array is shared between callers and therefore read-only.
    """
    order = np.arange(count, dtype=np.int64)
    if shuffle:
        keyed_generator(seed, Stream.ORDER, epoch).shuffle(order)
    order.setflags(write=False)
    return order


def rect_shapes(
    heights: ArrayLike, widths: ArrayLike, *, imgsz: int, stride: int, batch: int, pad: float = 0.5
) -> tuple[Ints, tuple[Shape, ...]]:
    """Order the images by aspect ratio and find the smallest input shape of each global batch.

    The ``--rect`` rule of YOLOv5: the longest side is ``imgsz``, the other follows from the batch's
    aspect ratio nearest to a square, and both are raised to a multiple of ``stride`` after adding
    ``pad`` strides. Batches that hold tall and wide images alike are square.

    Args:
        heights: (n,) pixels of the original images.
        widths: (n,) pixels of the original images.
        imgsz: longest side of an image in the network's input, pixels.
        stride: coarsest stride of the network, pixels.
        batch: images in a *global* batch, so that shapes do not depend on the number of ranks.
        pad: room around the image, in strides. YOLOv5 uses 0.5 for validation and 0 for training.

    Returns:
        The order, (n,) int64, and the (height, width) of each global batch. Pass both to StepSampler.
    """
    ratios = np.asarray(heights, np.float64) / np.asarray(widths, np.float64)
    order = np.argsort(ratios, kind="stable").astype(np.int64)
    shapes = []
    for start in range(0, len(order), batch):
        ratio = ratios[order[start : start + batch]]
        tall, wide = min(1.0, float(ratio.max())), min(1.0, 1.0 / float(ratio.min()))
        sides = np.ceil(np.array([tall, wide]) * imgsz / stride + pad) * stride
        shapes.append((int(sides[0]), int(sides[1])))
    return order, tuple(shapes)


@dataclass(frozen=True, eq=False)
class StepSampler:
    """The plan of every epoch: which samples form step k, and which of them are this rank's.

    Args:
        count: images in the data set.
        global_batch: images a step takes over all ranks; the last step of an epoch takes what is left.
        rank: this process, 0..size-1.
        size: number of processes.
        seed: of the run.
        shuffle: a new order every epoch; otherwise the data set's own order, or ``order``.
        shape: input (height, width) of all batches, or one for each global batch (see rect_shapes).
        order: (count,) fixed order of the images. Only without ``shuffle``.
        slices: this rank's; by default each rank has one.
        weights: an epoch is drawn by them, and no permutation. Only with ``shuffle``.
        unmixed_from: the epoch from which on images stay apart.

    Raises:
        ValueError: the numbers contradict each other.
    """

    count: int
    global_batch: int
    rank: int
    size: int
    seed: int = field(kw_only=True)
    shuffle: bool = field(kw_only=True)
    shape: Shape | Sequence[Shape] = field(kw_only=True)
    order: Ints | None = field(kw_only=True, default=None)
    slices: Slices | None = field(kw_only=True, default=None)
    weights: ImageWeights | None = field(kw_only=True, default=None)
    unmixed_from: int | None = field(kw_only=True, default=None)

    def __post_init__(self) -> None:
        if self.count < 0 or self.global_batch < 1 or not 0 <= self.rank < self.size:
            raise ValueError(f"count >= 0, global_batch >= 1 and 0 <= rank < size must hold: {self}")
        if self.order is not None and (self.shuffle or len(self.order) != self.count):
            raise ValueError("a fixed order names every image once and excludes shuffle")
        if self.weights is not None and not self.shuffle:
            raise ValueError("weights need shuffle")
        if np.ndim(self.shape) == 2 and (self.shuffle or len(self.shape) != self.batches_per_epoch):
            raise ValueError("shapes of batches need a fixed order and exactly one entry a global batch")

    @property
    def batches_per_epoch(self) -> int:
        """Steps that visit every image once, or draw as many."""
        return -(-self.count // self.global_batch)

    def shape_of(self, batch: int) -> Shape:
        """Input (height, width) of a global batch: the same on every rank and in every epoch."""
        height, width = np.broadcast_to(self.shape, (self.batches_per_epoch, 2))[batch].tolist()
        return height, width

    def global_indices(self, epoch: int, batch: int) -> Ints:
        """The images of one step over all ranks, (n,) int64: the same on every rank."""
        if not 0 <= batch < self.batches_per_epoch:
            raise IndexError(f"batch {batch} of an epoch of {self.batches_per_epoch}")
        order = self.order
        if self.weights is not None:
            order = self.weights.draws(self.seed, epoch).order
        elif order is None:
            order = epoch_order(self.count, self.seed, epoch if self.shuffle else 0, self.shuffle)
        return order[batch * self.global_batch : (batch + 1) * self.global_batch]

    def images_in(self, epoch: int, batch: int) -> int:
        """How many images a step takes over all ranks: global_batch, or fewer in the last step."""
        return len(self.global_indices(epoch, batch))

    def rank_keys(self, epoch: int, batch: int) -> list[SampleKey]:
        """This rank's samples of a step, in order. Empty when there are fewer images than ranks."""
        indices = self.global_indices(epoch, batch)
        places = self._places(len(indices))
        height, width = self.shape_of(batch)
        times: Iterable[int] = repeat(0)
        if self.weights is not None:
            first = batch * self.global_batch
            times = (
                self.weights.draws(self.seed, epoch).times[first + places[0] : first + places[-1]].tolist()
            )
        mine = indices[places[0] : places[-1]].tolist()
        apart = self.unmixed_from is not None and epoch >= self.unmixed_from
        return [SampleKey(epoch, i, height, width, k, apart) for i, k in zip(mine, times, strict=False)]

    def first_place(self, epoch: int, batch: int) -> int:
        """The place of the first of them among those of all ranks."""
        return self._places(self.images_in(epoch, batch))[0]

    def slice_sizes(self, epoch: int, batch: int) -> tuple[int, ...]:
        """Images of each of this rank's slices of a step."""
        places = self._places(self.images_in(epoch, batch))
        return tuple(end - start for start, end in pairwise(places))

    def _places(self, images: int) -> list[int]:
        own = Slices.even(self.size, self.rank, self.size) if self.slices is None else self.slices
        return own.places(images)
