"""Files from strangers: regular ones only, never more than a limit, and no waiting for a pipe's other end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file to read from, and its size in bytes.

    Raises:
        OSError: it is missing, unreadable or no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file, status.st_size
    finally:
        os.close(descriptor)


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it is missing, unreadable, no regular file or longer than ``limit`` bytes.
    """
    with opened(path) as (file, size):
        if size > limit:
            raise OSError(f"{_readable(size)} is more than the {_readable(limit)} that are read")
        data = file.read(size + 1)
    if len(data) > size:  # what the kernel makes up, or somebody still writes
        raise OSError("it has no fixed size")
    return data


def _readable(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
