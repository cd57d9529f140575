"""Tables in memory: columns of equal length, and pieces of unequal length end to end.

Pieces are in a column of their name and end where the column ``<name>_end`` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Ints

Table = dict[str, NDArray[Any]]


def ragged(name: str, pieces: Sequence[bytes]) -> Table:
    """Byte strings end to end."""
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return {name: np.frombuffer(b"".join(pieces), np.uint8), f"{name}_end": ends}


def ragged_row(columns: Mapping[str, NDArray[Any]], name: str, i: int) -> bytes:
    """The i-th byte string, for i >= 0."""
    ends = columns[f"{name}_end"]
    return columns[name][int(ends[i - 1]) if i else 0 : int(ends[i])].tobytes()


def places_of(ends: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """Where the pieces of some rows lie, in the order of the rows.

    Returns:
        The ends of the pieces when only these are left, (rows,); the places of their elements, (elements,).
    """
    starts = np.concatenate([[0], ends])[rows]
    new_ends = np.cumsum(ends[rows] - starts)
    firsts = np.concatenate([[0], new_ends])[:-1]
    counts = new_ends - firsts
    return new_ends, np.arange(int(counts.sum())) + np.repeat(starts - firsts, counts)
