"""Through the network in several passes: a slice of a batch that a rank's memory does not hold at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from horovod_yolo.core.types import Batch
from horovod_yolo.process.allocator import give_back_freed_memory


@dataclass(frozen=True)
class Passes:
    """How a slice is split. The count is the same for all slices, whatever their sizes."""

    share: int  # images of the largest slice
    count: int = 1
    together: int = 0  # images of a rank that may be on their way in several passes; more are one at a time

    @classmethod
    def that_fit(cls, share: int, images: int) -> Passes:
        """As few passes as need memory for no more than so many images at a time."""
        return cls(share, math.ceil(share / images))

    @property
    def images(self) -> int:
        """The most images of a pass."""
        return math.ceil(self.share / self.count)

    def halved(self) -> Passes | None:
        """Passes of half as many images; None where they have one."""
        return Passes.that_fit(self.share, self.images // 2) if self.images > 1 else None


def what_batch_norm_sees(passes: Passes, sync_bn: bool) -> str:
    """What changes with the number of passes."""
    if sync_bn:
        return (
            f"batch norm sees one of the {passes.count} passes of all ranks at a time, not the global batch"
        )
    return f"batch norm sees {passes.images} images at a time, not the rank's {passes.share}"


@dataclass
class Window:
    """The batches of one step, which are taken when they are first come to and kept for another time."""

    batches: Iterator[Batch]
    scales: Sequence[float]  # one for each batch
    _taken: list[Batch] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.scales)

    def __iter__(self) -> Iterator[tuple[Batch, float]]:
        """Each batch with its scale."""
        for number, scale in enumerate(self.scales):
            if number == len(self._taken):
                self._taken.append(next(self.batches))
            yield self._taken[number], scale


def give_back(device: torch.device) -> None:
    """Let the device have the memory that is kept for later, in pieces of sizes that do not fit now."""
    if device.type == "cpu":
        give_back_freed_memory()
    empty = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if empty is not None:
        empty()
