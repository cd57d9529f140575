"""What a process prints, where that goes into a file on a disk that may be full."""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Forgiving(io.FileIO):
    """A file that swallows what the disk refuses: there is nowhere left to say so."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def outlive_full_disk() -> None:
    """Let no full disk end this process for a line it prints. Pipes and terminals stay as they are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and _is_file(stream):
            setattr(sys, name, _forgiving(stream))


def _is_file(stream: TextIO | None) -> bool:
    return stream is not None and stat.S_ISREG(os.fstat(stream.fileno()).st_mode)


def _forgiving(stream: TextIO) -> TextIO:
    stream.flush()
    raw = _Forgiving(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True
    )
