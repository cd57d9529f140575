"""What callers of ``predict`` name: pictures, videos, cameras, streams; alone, in lists, folders, globs."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Image
from horovod_yolo.data.read import IMAGE_SUFFIXES, ImageError, pixels_of, read_image

Given: TypeAlias = str | int | os.PathLike[str] | PIL.Image.Image | NDArray[Any]

VIDEO_SUFFIXES = frozenset(
    (
        *(".3gp", ".asf", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
        *(".ogv", ".ts", ".webm", ".wmv"),
    )
)
LIST_SUFFIXES = frozenset((".txt", ".streams"))
SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "tcp", "udp", "srt")
MAX_LIST_BYTES = 1 << 28
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Picture:
    """An image: a file, or what was given as pixels."""

    given: Path | PIL.Image.Image | NDArray[Any]
    name: str

    def pixels(self) -> Image:
        """(H, W, 3) uint8 RGB.

        Raises:
            UserError: it is no usable image.
        """
        return pixels(self.given)


@dataclass(frozen=True)
class Video:
    """A video with an end: a file, or one that is fetched while it is looked at."""

    address: str
    name: str


@dataclass(frozen=True)
class Live:
    """A camera of this host by its number, or a stream by its address: it goes on without us."""

    address: str | int
    name: str


Source: TypeAlias = Picture | Video | Live


def find_sources(given: Given | Iterable[Given]) -> Iterator[Source]:
    """What is meant, one by one as it is asked for; files of folders and globs in the order of their names.

    A whole number, also as text, is a camera; ``rtsp://`` and the like are streams; a ``.txt`` or
    ``.streams`` file lists sources, a line each, from the current folder or from the list's own.

    Raises:
        UserError: there is no such thing, or nothing in it.
    """
    places = iter(range(1 << 62))
    if isinstance(given, np.ndarray) and given.ndim == 4:
        given = list(given)
    alone = isinstance(given, (str, int, os.PathLike, PIL.Image.Image, np.ndarray))
    if not alone and (not isinstance(given, Iterable) or isinstance(given, (bytes, bytearray, Mapping))):
        raise _unusable(given)
    for one in [given] if alone else given:  # type: ignore[union-attr]  # it is iterable
        if isinstance(one, bool):
            raise _unusable(one)
        if isinstance(one, (int, np.integer)):
            yield Live(int(one), f"camera {one}")
        elif isinstance(one, str):
            yield from _of_text(one)
        elif isinstance(one, os.PathLike):
            yield from _of_path(Path(one))
        elif isinstance(one, (PIL.Image.Image, np.ndarray)):
            yield Picture(one, f"image{next(places)}")
        else:
            raise _unusable(one)


def pixels(image: object) -> Image:
    """The pixels of a picture, (H, W, 3) uint8 RGB.

    Raises:
        UserError: it is no usable image.
    """
    try:
        if isinstance(image, (str, os.PathLike)):
            return read_image(Path(image))
        if isinstance(image, PIL.Image.Image):
            return pixels_of(image)
    except ImageError as error:
        raise UserError(error.reason, where=error.path, fix="leave it out or replace it") from None
    if not isinstance(image, np.ndarray):
        raise _unusable(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f"an image is {image.dtype} {image.shape}", fix="give (H, W, 3) uint8 RGB")
    return image


def without_password(address: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"(?<=://)[^/?#]*@", "", address)


def _of_text(text: str) -> Iterator[Source]:
    if not text:
        raise UserError("a source is empty", fix="name a picture, a folder (. for this one), a video, ...")
    if text.isascii() and text.isdigit():
        yield Live(int(text), f"camera {int(text)}")
    elif scheme := _SCHEME.match(text):
        yield _of_address(text, scheme[1].lower())
    elif text == "screen" or text.startswith("screen "):
        raise UserError("the screen is no source here", where=text, fix="record it, and name the video")
    elif _MAGIC.search(text) and not Path(text).exists():
        yield from _of_glob(text)
    else:
        yield from _of_path(Path(text))


def _of_address(address: str, scheme: str) -> Source:
    name = without_password(address)
    if scheme not in SCHEMES:
        raise UserError("unknown kind of address", where=name, fix=f"known are {', '.join(SCHEMES)}")
    parts = urlsplit(address)
    suffix = Path(parts.path).suffix.lower()
    if scheme in ("http", "https") and suffix in IMAGE_SUFFIXES:
        raise UserError("pictures are not downloaded", where=name, fix="fetch it first, and name the file")
    if scheme in ("http", "https") and suffix in VIDEO_SUFFIXES:
        return Video(address, name)
    return Live(address, name)


def _of_path(path: Path, listed_in: Path | None = None) -> Iterator[Source]:
    suffix = path.suffix.lower()
    if path.is_dir():
        yield from _of_folder(path)
    elif suffix in LIST_SUFFIXES and listed_in is None:
        yield from _of_list(path)
    elif suffix in VIDEO_SUFFIXES:
        yield Video(str(path), str(path))
    elif path.exists() or listed_in is not None:
        yield Picture(path, str(path))
    else:
        raise UserError("no such file", where=path, fix="name pictures, videos, folders or streams")


def _of_folder(folder: Path) -> list[Source]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _LOOKED_INTO)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=folder, fix="make it readable") from None
    if not found:
        raise UserError(
            "no image in this folder, nor a video", where=folder, fix="name a folder of images, or an image"
        )
    return [_of_file(path) for path in found]


def _of_glob(pattern: str) -> list[Source]:
    paths = sorted(Path(found) for found in glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute ones too
    found = [path for path in paths if path.suffix.lower() in _LOOKED_INTO and not path.is_dir()]
    if not found:
        raise UserError("no picture or video is called so", where=pattern, fix="quote it: 'photos/**/*.jpg'")
    return [_of_file(path) for path in found]


def _of_file(path: Path) -> Source:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Video(str(path), str(path))
    return Picture(path, str(path))


def _of_list(file: Path) -> Iterator[Source]:
    """Files that are missing are found out when it is their turn."""
    try:
        if file.stat().st_size > MAX_LIST_BYTES:
            raise UserError("too large for a list", where=file, fix=f"{MAX_LIST_BYTES >> 20} MiB are read")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read ({getattr(error, 'strerror', None) or 'it is not text'})",
            where=file,
            fix="give a text file with a source a line",
        ) from None
    named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not named:
        raise UserError("the list is empty", where=file, fix="write a source a line")
    for line in named:
        path = Path(line)
        if line.isdigit() or _SCHEME.match(line) or line.startswith("screen"):
            yield from _of_text(line)
        elif path.exists() or not (file.parent / path).exists():
            yield from _of_path(path, file)
        else:
            yield from _of_path(file.parent / path, file)


def _unusable(image: object) -> UserError:
    return UserError(
        f"{type(image).__name__} is no image", fix="give a path, a Pillow image, an array, or a list of such"
    )


_LOOKED_INTO = IMAGE_SUFFIXES | VIDEO_SUFFIXES
