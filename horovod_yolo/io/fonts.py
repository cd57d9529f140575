"""Fonts for names in any script: DejaVu Sans, which comes with matplotlib, and what this machine has."""

from __future__ import annotations

import importlib.util
import logging
import os
import unicodedata
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageFont

log = logging.getLogger(__name__)
SUFFIXES = (".ttf", ".otf", ".ttc")
UNUSUAL = ("bold", "italic", "oblique", "mono", "serif", "light", "thin", "black", "condensed")
NO_CHARACTER = "\U0010ffff"  # never one: a font draws it as it draws all that it lacks
PROBED_SIZE = 16
EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"}  # a letter's Unicode name begins so
FROM_THE_RIGHT = {"R", "AL", "AN", "RLE", "RLO", "RLI"}  # what letters and signs of direction are in Unicode
JOINER = "\u200d"  # between signs that are one picture
JOINING = {"MONGOLIAN", "PHAGS"}  # scripts from left to right, without marks, whose letters join


def runs(text: str) -> list[tuple[str, Path]]:
    """A text in pieces, each with the file of a font that has its letters; spaces are of the piece before.

    Where no font here has a letter, it is a piece of DejaVu Sans, which shows a box.
    """
    faces: list[Path] = []
    for letter in text:
        blank = letter.isspace() or unicodedata.category(letter) in ("Cf", "Mn", "Me")
        faces.append(faces[-1] if blank and faces else _face_of(letter) or dejavu())
    pieces = groupby(zip(text, faces, strict=True), key=lambda pair: pair[1])
    return [("".join(letter for letter, _ in piece), face) for face, piece in pieces]


def shown_name(number: int, name: str, unable: str = "") -> str:
    """How pictures show a class: by its name, or as ``#3`` where it would not be right.

    That is where no font here has all its letters, or where they are to be laid out, which the caller cannot.
    The first time, a line says why and what helps.

    Args:
        number: of the class.
        name: of the class.
        unable: why the caller sets letters only one after the other; empty: it lays out what one font has.
    """
    name = unicodedata.normalize("NFC", name)
    lacking = [letter for letter in name if letter.isprintable() and _face_of(letter) is None]
    if lacking:
        _say(f"no font here has the letters of their names: apt-get install {_package(lacking[0])}")
    elif (reason := _no_layout(name, unable)) and _needs_layout(name):
        _say(f"their names run from right to left, or their letters join or carry marks, and {reason}")
    else:
        return name
    return f"#{number}"


def _needs_layout(name: str) -> bool:
    """Whether its letters one after the other are something else than the name."""
    return any(
        unicodedata.bidirectional(letter) in FROM_THE_RIGHT
        or unicodedata.category(letter).startswith("M")
        or letter == JOINER
        or _script(letter) in JOINING
        for letter in name
    )


def _no_layout(name: str, unable: str) -> str:
    """Why it cannot be laid out, if so: pieces of several fonts stand from left to right."""
    turns = any(unicodedata.bidirectional(letter) in FROM_THE_RIGHT for letter in name)
    several = turns and len(runs(name)) > 1
    return unable or ("no font here has all of their letters" if several else "")


@lru_cache
def dejavu() -> Path:
    """DejaVu Sans: Latin, Greek, Cyrillic, Arabic, Hebrew and more.

    Found without importing matplotlib, which is slow and fails where ``MPLBACKEND`` names a notebook's.
    """
    found = importlib.util.find_spec("matplotlib")
    assert found is not None and found.origin is not None
    return Path(found.origin).with_name("mpl-data") / "fonts/ttf/DejaVuSans.ttf"


@lru_cache(maxsize=4096)
def _face_of(letter: str) -> Path | None:
    return next((face for face in (dejavu(), *_faces_here()) if _has(face, letter)), None)


def _has(face: Path, letter: str) -> bool:
    """Whether a font draws a letter otherwise than what it lacks. A font that cannot be read has none."""
    try:
        font = _probe(face)
        mask, lacking = font.getmask(letter), font.getmask(NO_CHARACTER)
    except OSError:  # such as bitmaps of one size alone, or a damaged file
        return False
    return letter.isspace() or (mask.size, bytes(mask)) != (lacking.size, bytes(lacking))


@lru_cache(maxsize=64)
def _probe(face: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(face), PROBED_SIZE, layout_engine=ImageFont.Layout.BASIC)


@lru_cache
def _faces_here() -> tuple[Path, ...]:
    """Font files of this machine and this user, ordinary ones first."""
    home = os.environ.get("HOME", "/")
    own = os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share"
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = [
        Path(home, ".fonts"),
        *(Path(folder, "fonts") for folder in (own, *shared.split(":")) if folder),
    ]
    found = {path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    return tuple(sorted(found, key=lambda path: (sum(w in path.name.lower() for w in UNUSUAL), path)))


def _package(letter: str) -> str:
    """Of Debian, with a font that has the letter."""
    if _script(letter) in EAST_ASIAN:
        return "fonts-noto-cjk"
    return "fonts-symbola" if unicodedata.category(letter) == "So" else "fonts-noto-core"


def _script(letter: str) -> str:
    return unicodedata.name(letter, "-").split()[0].split("-")[0]


@lru_cache
def _say(reason: str) -> None:
    log.warning("pictures: some classes are shown by number (#0): %s", reason)
