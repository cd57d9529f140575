"""What a process prints, where that goes to a disk that may be full or a terminal that may hang up."""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Forgiving(io.FileIO):
    """A file that swallows what disk or terminal refuses: there is nowhere left to say so."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def outlive_lost_output() -> None:
    """Let no full disk, no lost terminal and no odd character end this process for a line it prints.

    A line is one write, also under PYTHONUNBUFFERED, which our images set: ranks that share a pipe would
    print their words in between.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            # A folder's name may be no text, a terminal's alphabet small.
            stream.reconfigure(errors="backslashreplace", line_buffering=True, write_through=False)
        if stream is getattr(sys, f"__{name}__") and _may_be_lost(stream):
            setattr(sys, name, _forgiving(stream))


def _may_be_lost(stream: TextIO | None) -> bool:
    if stream is None:
        return False
    return stat.S_ISREG(os.fstat(stream.fileno()).st_mode) or stream.isatty()


def _forgiving(stream: TextIO) -> TextIO:
    stream.flush()
    raw = _Forgiving(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True
    )
