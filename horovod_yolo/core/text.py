"""Text from strangers' files as messages can show it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_LINE = 200  # characters
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != ord("\t")}


@contextmanager
def unwarned() -> Iterator[None]:
    """For Python's own parsers: what they warn of in a stranger's file, such as an odd escape, is not the
    user's to mend.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def plain(text: str) -> str:
    """A text on one line that moves no cursor: a file's name may hold what looks like a line of ours."""
    return text.translate(_CONTROLS)


def one_line(given: object) -> str:
    """A text without codes that a terminal would obey, and not too long; empty for what is no text."""
    if not isinstance(given, str):
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in given).split())[:LONGEST_LINE]
