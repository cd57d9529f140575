"""What need not be done twice: decoding images.

The cache is only ever a shortcut. A damaged file is a miss, a folder that cannot be written to costs
time and a warning, and nothing is written beside the user's images. Files appear under their names complete
or not at all, so ranks and jobs may share a folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from horovod_yolo.core.types import Image
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.letterbox import reduction_of
from horovod_yolo.data.read import read_image
from horovod_yolo.io.atomic import replacing
from horovod_yolo.io.places import cache_home
from horovod_yolo.io.private import check_own, own_folder

_log = logging.getLogger(__name__)

# What NumPy and our own checks raise on a damaged file.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError)


def image_loader(
    annotations: Annotations,
    kind: Literal["none", "ram", "disk"] = "none",
    cache_dir: str = "",
    largest: tuple[int, int] | None = None,
) -> Callable[[int], Image]:
    """What reads an image by its place in the annotations; picklable, for the loader's workers.

    It raises `ImageError` as `read_image` does, and where the image's size is no longer the annotations': its
    boxes would lie elsewhere. With ``largest``, the (height, width) of the largest input, images that are
    twice as large or more come at 1 / 2, 4 or 8 of their size.
    """
    reader = ImageReader(annotations, largest)
    if kind == "none":
        return reader
    return ImageCache(reader, kind, Path(cache_dir) / "images" if cache_dir else None).get


@dataclass(frozen=True)
class ImageReader:
    """Reads images of annotations at the size that inputs of ``largest`` need, at their own without it."""

    annotations: Annotations
    largest: tuple[int, int] | None = None

    def __call__(self, i: int) -> Image:
        """The i-th image, (H, W, 3).

        Raises:
            ImageError: as ``read_image``.
        """
        return read_image(self.annotations.image_path(i), self.reduction(i), self.size(i))

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of the i-th image's file in pixels."""
        return int(self.annotations.heights[i]), int(self.annotations.widths[i])

    def reduction(self, i: int) -> int:
        """What the i-th image is divided by."""
        return 1 if self.largest is None else reduction_of(*self.size(i), *self.largest)

    def shape(self, i: int) -> tuple[int, int, int]:
        """Of the array that is given."""
        rows, columns = (-(-side // self.reduction(i)) for side in self.size(i))
        return rows, columns, 3


class ImageCache:
    """Decoded images of annotations: kept in this process (``ram``) or as ``.npy`` files (``disk``).

    Disk files are named by path, size and time of the image, so a changed image is decoded anew, and by the
    size it is kept at.
    """

    def __init__(self, read: ImageReader, kind: Literal["ram", "disk"], folder: Path | None = None) -> None:
        self._read = read
        self._kind = kind
        self._folder = folder or _default_folder()
        self._kept: dict[int, Image] = {}
        self._writable = True
        self._trusted = kind == "disk" and self._is_own()

    def get(self, i: int) -> Image:
        """The i-th image of the annotations, (H, W, 3) uint8, read-only where it is the cache's own.

        Raises:
            ImageError: as ``read_image``.
        """
        return self._from_disk(i) if self._kind == "disk" else self._from_ram(i)

    def _is_own(self) -> bool:
        try:
            check_own(self._folder)
        except OSError as error:
            _log.warning("images are not cached in %s: %s", self._folder, error.strerror)
            return False
        return True

    def _from_ram(self, i: int) -> Image:
        if i not in self._kept:
            pixels = self._read(i)
            pixels.setflags(write=False)
            self._kept[i] = pixels
        return self._kept[i]

    def _from_disk(self, i: int) -> Image:
        path = self._read.annotations.image_path(i)
        if not path.is_file() or not self._trusted:
            return self._read(i)  # the first raises, and says why
        file = self._folder / _image_name(path, self._read.size(i), self._read.reduction(i))
        pixels = _load_pixels(file, self._read.shape(i))
        if pixels is None:
            pixels = self._read(i)
            self._store(file, pixels)
        return pixels

    def _store(self, file: Path, pixels: Image) -> None:
        if not self._writable:
            return
        try:
            _publish(file, lambda stream: np.save(stream, pixels))
        except OSError as error:
            self._writable = False  # a full disk stays full: say it once, then decode
            _log.warning(
                "images cannot be cached in %s (%s): they are decoded every time", self._folder, error
            )


def _default_folder() -> Path:
    home = cache_home() or Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return home / "horovod_yolo" / "images"


def _publish(file: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file so that others see all of it or nothing."""
    own_folder(file.parent)
    with replacing(file) as stream:
        write(stream)


def _image_name(path: Path, size: tuple[int, int], reduction: int) -> str:
    """Only a file that was found to have that size has this name: its header is not read again."""
    status, (height, width) = path.stat(), size
    text = f"{path.absolute()}\n{status.st_size}\n{status.st_mtime_ns}\n{width}x{height}\n1/{reduction}"
    name = hashlib.sha256(os.fsencode(text)).hexdigest()
    return f"{name[:2]}/{name}.npy"


def _load_pixels(file: Path, shape: tuple[int, int, int]) -> Image | None:
    """A stored image, mapped. None when there is no sound one."""
    try:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
        if pixels.dtype != np.uint8 or pixels.shape != shape:
            raise ValueError("another image")
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        _log.warning("cached image %s is unusable (%s): decoded again", file, error)
        return None
    return np.asarray(pixels)
