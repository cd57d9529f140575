"""How many slices each rank has, where ranks are not equally fast.

Each rank tells what a slice takes it, in the message that brings the losses of a step. So all know it after
the same step, decide alike, and change at once: between two steps. The sums over the slices are exact, so who
has which changes no result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from horovod_yolo.core.slices import Slices

MEASURED = 5  # steps whose median may move slices the first time
LONGER = (1, 2, 4)  # times as many after no, one, more changes: else noise would move slices back and forth
KEPT = 4  # times as many steps as are needed are in the median at most: as long as shares stay, it gets surer
WORTH = 0.95  # of a step's time must be left, or ranks keep what they have


def best_shares(count: int, seconds: Sequence[float]) -> tuple[int, ...]:
    """How many slices each rank has where the last is ready as soon as possible.

    Each has one at least, as long as there are enough: its speed would not be known any more.

    Args:
        count: of slices.
        seconds: that a slice takes each rank.
    """
    ranks = range(len(seconds))
    shares = [int(count >= len(seconds))] * len(seconds)
    while sum(shares) < count:
        shares[min(ranks, key=lambda rank: (shares[rank] + 1) * seconds[rank])] += 1
    return tuple(shares)


@dataclass
class Balance:
    """The shares of all ranks, and what a slice took this one."""

    rank: int
    shares: tuple[int, ...]  # slices of each rank
    adapts: bool = False  # to measured time
    pixels: float = 1.0  # of a slice of the full size, in all channels
    seconds: tuple[float, ...] = ()  # that a slice took each rank when that was last known
    changes: int = 0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT * MEASURED))
    _warm: bool = False  # after a first step, which also fills queues and memory
    _measured: dict[tuple[int, ...], float] = field(default_factory=dict)  # seconds of a step, by shares

    @property
    def slices(self) -> Slices:
        """This rank's."""
        return Slices.of(self.shares, self.rank)

    def note(self, seconds: float, pixels: float) -> None:
        """Take in how long this rank took to get so many pixels and to compute on them."""
        if self._warm and pixels:
            self._recent.append(seconds * self.pixels / pixels)
        self._warm = True

    def message(self) -> list[float]:
        """A number for each rank, of which this one knows its own: their sums over the ranks are `heard`."""
        own = median(self._recent) if len(self._recent) >= self._needed else 0.0
        return [own if rank == self.rank else 0.0 for rank in range(len(self.shares))] if self.adapts else []

    def begin_epoch(self) -> None:
        """Machines may have changed: shares that were too slow may be tried again."""
        self._measured.clear()

    def heard(self, seconds: Sequence[float]) -> bool:
        """Take in what a slice takes each rank, 0 where it is not known; whether the shares are others now.

        What was measured with some shares counts more than what is expected of them: a rank may need more
        time for each of two slices than for a single one.
        """
        if not seconds or not all(seconds):
            return False
        self.seconds = tuple(seconds)
        self._measured[self.shares] = now = self._slowest(self.shares)
        best = best_shares(sum(self.shares), seconds)
        if max(self._slowest(best), self._measured.get(best, 0.0)) > WORTH * now:
            return False
        self.shares, self._warm = best, False
        self.changes += 1
        self._recent = deque(maxlen=KEPT * self._needed)
        return True

    @property
    def _needed(self) -> int:
        """Steps that must have been measured with these shares before others are taken."""
        return MEASURED * LONGER[min(self.changes, len(LONGER) - 1)]

    def _slowest(self, shares: Sequence[int]) -> float:
        return max(share * seconds for share, seconds in zip(shares, self.seconds, strict=True))
