"""Millions of objects at a time: Python collects garbage, and frees a list, while all other threads wait.

Seconds of that, and the guard of a rank sees no sign of life.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FREED_HERE = 20_000  # objects with what they hold, at most: a tenth of a second
FREED_AT_ONCE = 1_000  # of more: as long as a thread waits for another anyway


@contextmanager
def uncollected() -> Iterator[None]:
    """What is made inside is no garbage: the collector looks at none of it until `free`."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def free(objects: list[Any]) -> None:
    """Empty a list that was made `uncollected`: a long one piece by piece, by a thread beside this one."""
    if len(objects) <= FREED_HERE:
        _free(objects)
    else:
        threading.Thread(target=_free, args=(objects,), name="free", daemon=True).start()


def _free(objects: list[Any]) -> None:
    while objects:
        del objects[-FREED_AT_ONCE:]
    gc.unfreeze()
