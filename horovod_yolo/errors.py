"""The errors that a script may catch, under the name that documents gave until they were part of `api`."""

from __future__ import annotations

from horovod_yolo.core.errors import (
    FaultyRankError,
    MemoryShortError,
    NonFiniteError,
    RanksFailedError,
    StoppedError,
    UnwrittenError,
    UserError,
)

__all__ = [
    "FaultyRankError",
    "MemoryShortError",
    "NonFiniteError",
    "RanksFailedError",
    "StoppedError",
    "UnwrittenError",
    "UserError",
]
