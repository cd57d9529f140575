"""Text files from strangers: their lines, and the encoding where it is not UTF-8."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTES_AT_ONCE = 1 << 20
_MARKS = (  # UTF-32's first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_LOOKED_AT = 4096  # bytes: enough to tell


def foreign_encoding(data: bytes) -> str | None:
    """What a file is written in, where that is neither ASCII nor UTF-8 nor any other text of single bytes."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    head = data[:_LOOKED_AT]
    zeros = [head[start::2].count(0) for start in (0, 1)]
    if sum(zeros) * 4 <= len(head):  # a stray zero is its own line's mistake
        return None
    return "UTF-16" if max(zeros) > len(head) // 4 and min(zeros) * 8 < max(zeros) else "binary data"


def not_text(data: bytes) -> str | None:
    """Why a file cannot be read as lines of text; None where it can be."""
    found = foreign_encoding(data)
    if found is None:
        return None
    return "it is binary, no text" if found == "binary data" else f"it is {found} text: save it as UTF-8"


def lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1, and the lines that are not blank. All three kinds of line end count."""
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    number = 0
    while start < len(data):
        end = _LINE_END.search(data, start + _BYTES_AT_ONCE)  # lists are long: not all lines at once
        stop = end.end() if end else len(data)
        for line in data[start:stop].splitlines():
            number += 1
            if stripped := line.strip():
                yield number, stripped
        start = stop
