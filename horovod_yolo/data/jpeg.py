"""The header of an ordinary JPEG, read without a library: Pillow takes a fifth as long as decoding.

Training sets consist of such files. Anything else (EXIF, Adobe's markers, several pictures in a file, damage)
is left to Pillow.
"""

from __future__ import annotations

START = b"\xff\xd8"
END = b"\xff\xd9"
SCAN = b"\xff\xda"  # cannot occur inside compressed data, and neither can the end

_FRAMES = (0xC0, 0xC2)  # baseline and progressive
_TABLES_AND_COMMENTS = frozenset((0xC4, 0xDB, 0xDD, 0xE0, 0xFE))
_PROFILE, _SCAN = 0xE2, 0xDA


def plain_size(content: bytes, most_scans: int) -> tuple[int, int] | None:
    """(height, width) in pixels of a complete, upright, grey or YCbCr JPEG; None where it may be otherwise.

    Args:
        content: of the file.
        most_scans: a JPEG with more of them is not plain.
    """
    if not (content.startswith(START) and content.endswith(END)):
        return None
    place, size, progressive = 2, None, False
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == _SCAN:
            return size if not progressive or content.count(SCAN) <= most_scans else None
        if marker in _FRAMES and size is None:
            bits, components = content[place + 4], content[place + 9]
            size = (
                int.from_bytes(content[place + 5 : place + 7], "big"),
                int.from_bytes(content[place + 7 : place + 9], "big"),
            )
            if bits != 8 or components not in (1, 3) or length != 8 + 3 * components or 0 in size:
                return None
            progressive = marker == 0xC2
        elif marker == _PROFILE:
            if content[place + 4 : place + 8] == b"MPF\0":
                return None
        elif marker not in _TABLES_AND_COMMENTS:
            return None
        place += 2 + length
    return None
