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
from functools import partial
from pathlib import Path
from typing import IO, Literal

import numpy as np

from horovod_yolo.core.types import Image
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.read import ImageError, read_image
from horovod_yolo.io.atomic import replacing
from horovod_yolo.io.places import cache_home
from horovod_yolo.io.private import check_own, own_folder

_log = logging.getLogger(__name__)

# What NumPy and our own checks raise on a damaged file.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError)


def image_loader(
    annotations: Annotations, kind: Literal["none", "ram", "disk"] = "none", cache_dir: str = ""
) -> Callable[[int], Image]:
    """What reads an image by its place in the annotations; picklable, for the loader's workers.

    It raises `ImageError` as `read_image` does, and where the image's size is no longer the annotations': its
    boxes would lie elsewhere.
    """
    if kind == "none":
        return partial(_unchanged, annotations, partial(_read, annotations))
    cache = ImageCache(annotations, kind, Path(cache_dir) / "images" if cache_dir else None)
    return partial(_unchanged, annotations, cache.get)


def _read(annotations: Annotations, i: int) -> Image:
    return read_image(annotations.image_path(i))


def _unchanged(annotations: Annotations, load: Callable[[int], Image], i: int) -> Image:
    image = load(i)
    height, width = image.shape[:2]
    if (height, width) != (annotations.heights[i], annotations.widths[i]):
        before = f"{annotations.widths[i]}x{annotations.heights[i]}"
        raise ImageError(
            annotations.image_path(i), f"it is {width}x{height} now and was {before} in the scan"
        )
    return image


class ImageCache:
    """Decoded images of annotations: kept in this process (``ram``) or as ``.npy`` files (``disk``).

    Disk files are named by path, size and time of the image, so a changed image is decoded anew.
    """

    def __init__(
        self, annotations: Annotations, kind: Literal["ram", "disk"], folder: Path | None = None
    ) -> None:
        self._annotations = annotations
        self._kind = kind
        self._folder = folder or _default_folder()
        self._kept: dict[int, Image] = {}
        self._writable = True
        self._trusted = kind == "disk" and self._is_own()

    def get(self, i: int) -> Image:
        """The i-th image of the annotations, (H, W, 3) uint8. The caller may change it: the cache will not.

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
            self._kept[i] = read_image(self._annotations.image_path(i))
        return self._kept[i].copy()

    def _from_disk(self, i: int) -> Image:
        path = self._annotations.image_path(i)
        if not path.is_file() or not self._trusted:
            return read_image(path)  # the first raises, and says why
        file = self._folder / _image_name(path)
        pixels = _load_pixels(file)
        if pixels is None:
            pixels = read_image(path)
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


def _image_name(path: Path) -> str:
    status = path.stat()
    text = f"{path.absolute()}\n{status.st_size}\n{status.st_mtime_ns}"
    name = hashlib.sha256(os.fsencode(text)).hexdigest()
    return f"{name[:2]}/{name}.npy"


def _load_pixels(file: Path) -> Image | None:
    """A stored image, mapped copy-on-write: changes stay in this process. None when there is no sound one."""
    try:
        pixels = np.load(file, mmap_mode="c", allow_pickle=False)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError("not an image")
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        _log.warning("cached image %s is unusable (%s): decoded again", file, error)
        return None
    return np.asarray(pixels)
