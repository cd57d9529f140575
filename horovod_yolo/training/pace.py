"""What the time of training went into, and so what bound it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

ADVICE: Mapping[str, str] = {
    "data": "more --workers, --cache ram or disk, or faster storage",
    "network": "a larger --batch-size, --compression, or a faster link (see horovod-yolo doctor)",
    "compute": "more ranks, a shorter type with --precision, or a smaller --imgsz",
}
MUCH = 0.1  # of the time, in which the other ranks wait for the one that sets the pace


@dataclass(frozen=True)
class Spent:
    """Seconds of one rank."""

    total: float = 0.0  # of training, without the rest of an epoch
    data: float = 0.0  # waited for its own data workers
    ranks: float = 0.0  # waited for other ranks: for what travels, and for those that are late
    validation: float = 0.0
    commit: float = 0.0  # told callbacks of an epoch and committed it

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Pace:
    """Which rank set the pace, and what with.

    A rank that is late waits for nobody. So the one that waited least for the others has set the pace, and
    what it did wait is the network's; the others' waits are longer by the time they were ahead of it.

    Attributes:
        rank: that one.
        shares: of its time, by what it went into: ``data``, ``network``, ``compute``.
        ahead: share of the time that the others, in the mean, waited longer than it.
    """

    rank: int
    shares: Mapping[str, float]
    ahead: float

    @classmethod
    def of(cls, spent: Sequence[Spent]) -> Pace:
        """From what each rank spent, by rank."""
        rank = min(range(len(spent)), key=lambda r: spent[r].ranks)
        own = spent[rank]
        total = own.total or 1.0
        data, network = own.data / total, own.ranks / total
        ahead = sum(each.ranks - own.ranks for each in spent) / max(len(spent) - 1, 1) / total
        return cls(rank, {"data": data, "network": network, "compute": max(1 - data - network, 0.0)}, ahead)

    @property
    def bound(self) -> str:
        """What took the largest share."""
        return max(self.shares, key=lambda part: self.shares[part])

    def words(self, host: str) -> str:
        """A line for people; ``host`` is that of the rank."""
        bound = self.bound
        rest = ", ".join(f"{part} {share:.0%}" for part, share in self.shares.items() if part != bound)
        line = f"bound by {bound} ({self.shares[bound]:.0%} of the time; {rest}): try {ADVICE[bound]}"
        if self.ahead < MUCH:
            return line
        return f"{line}. The other ranks waited {self.ahead:.0%} of the time for rank {self.rank} on {host}"
