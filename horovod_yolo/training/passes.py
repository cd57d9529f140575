"""Through the network in several passes: a rank's share of a batch that its memory does not hold at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from horovod_yolo.core.types import Batch
from horovod_yolo.process.allocator import give_back_freed_memory


@dataclass(frozen=True)
class Passes:
    """How a rank's share of a batch is split. The count is the same on all ranks, whatever their shares."""

    share: int  # images of the largest share
    count: int = 1

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


class KeptBuffers:
    """A model's buffers as they were at a moment: what batch norm tracks, above all."""

    def __init__(self, model: nn.Module) -> None:
        kinds: dict[torch.dtype, list[Tensor]] = {}  # tensors of one type are copied at once
        for buffer in model.buffers():
            kinds.setdefault(buffer.dtype, []).append(buffer)
        self._pairs = [(live, [buffer.clone() for buffer in live]) for live in kinds.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Now is the moment."""
        for live, kept in self._pairs:
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo all changes since."""
        for live, kept in self._pairs:
            torch._foreach_copy_(live, kept)


class Momenta:
    """How fast the running statistics of a model's batch norms move: as far in all passes as in one."""

    def __init__(self, model: nn.Module) -> None:
        self._of_one_pass = {
            module: module.momentum
            for module in model.modules()
            if isinstance(module, nn.BatchNorm2d) and module.momentum is not None
        }

    def slow_down(self, passes: int) -> None:
        """Set them for so many passes."""
        for module, momentum in self._of_one_pass.items():
            # The formula does not give the momentum of one pass to the last bit.
            module.momentum = momentum if passes == 1 else 1 - (1 - momentum) ** (1 / passes)


def give_back(device: torch.device) -> None:
    """Let the device have the memory that is kept for later, in pieces of sizes that do not fit now."""
    if device.type == "cpu":
        give_back_freed_memory()
    empty = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if empty is not None:
        empty()
