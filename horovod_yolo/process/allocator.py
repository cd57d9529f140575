"""Memory that a process gives up and asks for again, thousands of times a step.

glibc hands a large block back to the kernel as soon as it is free, and the next one comes page by page, each
filled with zeros. A training step on a CPU does that with every tensor of some size.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER, _NONE = -1, 0
SETTINGS_OF_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environ: Mapping[str, str] = os.environ) -> bool:
    """Let this process keep what it frees, for the next step; whether that could be done.

    What it holds then stays at its peak. Nothing is changed where the user has set glibc's allocator, or it
    is another's.
    """
    if any(environ.get(name) for name in SETTINGS_OF_USERS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_MMAP_MAX, _NONE))


def give_back_freed_memory() -> None:
    """Let the kernel have it after all."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
