"""Slices: the parts of a global batch that each have a pass of their own, whatever rank makes it.

With V slices the images of a slice are the same on any number of ranks, and so are its sums. Those over the
slices do not depend on their order where what is added is an integer, or a multiple of a fixed number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COARSE, FINE = 2.0**24, 2.0**66


@dataclass(frozen=True)
class Slices:
    """Of the ``count`` slices of every global batch those of a rank, from ``first`` to before ``last``."""

    count: int
    first: int
    last: int

    @classmethod
    def even(cls, count: int, rank: int, size: int) -> Slices:
        """A rank's share where all have as many, to one. With fewer slices than ranks some have none."""
        return cls(count, count * rank // size, count * (rank + 1) // size)

    @classmethod
    def of(cls, shares: Sequence[int], rank: int) -> Slices:
        """A rank's where the ranks have so many of them each."""
        first = sum(shares[:rank])
        return cls(sum(shares), first, first + shares[rank])

    def places(self, images: int) -> list[int]:
        """Where each of them begins in a global batch of so many images, and where the last ends."""
        return [images * number // self.count for number in range(self.first, self.last + 1)]

    def __len__(self) -> int:
        return self.last - self.first


def in_parts(values: Tensor) -> Tensor:
    """(...) -> (2, ...) float64 whose sums over slices, each by itself, are exact in any order.

    Multiples of 2^-24, and what is left in multiples of 2^-66: a sum below 2^29 of up to 2^12 terms has a
    place for each bit. Beyond that it is rounded as ever.
    """
    values = values.double()
    coarse = (values * COARSE).round_() / COARSE
    return torch.stack((coarse, ((values - coarse) * FINE).round_() / FINE))


def of_parts(sums: Tensor) -> Tensor:
    """The inverse of `in_parts`."""
    return sums[0] + sums[1]
