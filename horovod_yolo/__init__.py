"""Multi-node training of YOLO detectors with PyTorch and Horovod: ``from horovod_yolo import YOLO``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from horovod_yolo.api import (
        YOLO,
        FaultyRankError,
        MemoryShortError,
        NonFiniteError,
        RanksFailedError,
        StoppedError,
        UnwrittenError,
        UserError,
    )

__version__ = "0.1.0"
__all__ = [
    "YOLO",
    "FaultyRankError",
    "MemoryShortError",
    "NonFiniteError",
    "RanksFailedError",
    "StoppedError",
    "UnwrittenError",
    "UserError",
]


def __getattr__(name: str) -> object:
    """The Python API, which brings torch, is imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from horovod_yolo import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
