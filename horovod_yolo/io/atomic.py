"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends well, and leaves no trace otherwise.

    Whoever opens ``path`` meanwhile, or after a crash, finds the old content or the new one. Several may
    write at once: the last to end wins. Only a killed process leaves its unfinished file behind.

    Raises:
        OSError: the disk is full, read-only or gone; ``path`` is as it was.
    """
    unfinished = unfinished_name(path)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_name(path: Path) -> Path:
    """A free name beside ``path``: ``.last.pt.<8 hex digits>.tmp``.

    Not the process id: in containers on a shared file system it is the same on many hosts.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
