"""Text from strangers' files as messages can show it."""

from __future__ import annotations

LONGEST_LINE = 200  # characters


def one_line(given: object) -> str:
    """A text without codes that a terminal would obey, and not too long; empty for what is no text."""
    if not isinstance(given, str):
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in given).split())[:LONGEST_LINE]
