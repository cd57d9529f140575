"""What a rank hands to the program that started its job, over the job's output.

The rank may be on another host, and the launchers between hand on nothing but lines. So a value travels as
lines of text, short enough that no launcher tears them, each with its number: what other ranks print may come
between. They begin with a control character, which no message of ours has in it.
"""

from __future__ import annotations

import base64
import json
import re
import textwrap
import zlib
from typing import Any

_LINE = re.compile(rb"\x1ehorovod_yolo (\d+)/(\d+) ([A-Za-z0-9+/=]+)")
_WIDTH = 200


def as_lines(value: Any) -> list[str]:
    """A value, which JSON can hold, as lines without their ends."""
    packed = base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()
    pieces = textwrap.wrap(packed, _WIDTH)
    return [f"\x1ehorovod_yolo {n}/{len(pieces)} {piece}" for n, piece in enumerate(pieces, 1)]


class Told:
    """Collects the lines of one value."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}
        self._count = 0

    def heard(self, line: bytes) -> bool:
        """Whether this line was one of them. A launcher may have written something before it."""
        if (found := _LINE.search(line)) is None:
            return False
        self._pieces[int(found[1])], self._count = found[3], int(found[2])
        return True

    @property
    def value(self) -> Any:
        """What was told; None where nothing was, or not all of it."""
        if not self._pieces or len(self._pieces) < self._count:
            return None
        packed = b"".join(self._pieces[n] for n in sorted(self._pieces))
        return json.loads(zlib.decompress(base64.b64decode(packed)))
