"""What need not be done twice: decoding images.

A host's ranks and data workers share one copy: a file that all of them map, in memory or on a disk. Each
image has its place in it, which whoever needs the image first fills. It is written to, not mapped for
writing: where there is no room left that is an error to be caught, and not a signal.

The cache is only ever a shortcut. A damaged image is a miss, a full disk costs time and a warning, and
nothing is written beside the user's images.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import tempfile
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from horovod_yolo.core.types import Image, Ints
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.letterbox import reduction_of, reductions_of
from horovod_yolo.data.read import read_image
from horovod_yolo.data.shards import stamp
from horovod_yolo.io.places import cache_home
from horovod_yolo.io.private import own_folder

_log = logging.getLogger(__name__)

Kind = Literal["ram", "disk"]
_STATE = 3  # numbers of an image that say what is in its place: time, bytes and checksum; zeros for nothing
_PAGE = 4096


@dataclass(frozen=True)
class ImageReader:
    """Reads images of annotations at the size that inputs of ``largest`` need, at their own without it.

    With ``largest``, the (height, width) of the largest input, images that are twice as large or more come at
    1 / 2, 4 or 8 of their size. Picklable, for the loader's workers.
    """

    annotations: Annotations
    largest: tuple[int, int] | None = None

    def __call__(self, i: int) -> Image:
        """The i-th image, (H, W, 3).

        Raises:
            ImageError: as ``read_image``, and where the image's size is no longer the annotations': its boxes
                would lie elsewhere.
        """
        return read_image(self.annotations.nearest_file(i), self.reduction(i), self.annotations.size(i))

    def reduction(self, i: int) -> int:
        """What the i-th image is divided by."""
        return 1 if self.largest is None else reduction_of(*self.annotations.size(i), *self.largest)

    def shape(self, i: int) -> tuple[int, int, int]:
        """Of the array that is given."""
        reduction = self.reduction(i)
        rows, columns = (-(-side // reduction) for side in self.annotations.size(i))
        return rows, columns, 3

    def ends(self) -> Ints:
        """(images,) bytes up to the end of each image, when all are put one after the other."""
        sizes = np.column_stack((self.annotations.heights, self.annotations.widths)).astype(np.int64)
        if self.largest is not None:
            sizes = -(-sizes // reductions_of(sizes, *self.largest)[:, None])
        return np.cumsum(3 * sizes.prod(axis=1), dtype=np.int64)


class ImageCache:
    """The images of annotations in one file, as they are needed. Pickled, it is the file's address.

    Args:
        read: gives the images.
        kind: "ram" keeps what it has. "disk" looks whether the image's file is still the same, and whether
            what is in the cache is what was written.
        address: of the file, which may be empty; `in_memory` makes one.
        room: bytes that may be filled; later images are read every time.

    Raises:
        OSError: there is no such file, for one.
    """

    def __init__(self, read: ImageReader, kind: Kind, address: str, room: int | None = None) -> None:
        self._read, self._kind, self._room = read, kind, room
        self._ends = read.ends()
        self._start = -(-len(self._ends) * _STATE * 8 // _PAGE) * _PAGE
        self._checked = np.zeros(len(self._ends), np.bool_)
        self._writable = True
        self._descriptor = os.open(address, os.O_RDWR | os.O_CLOEXEC)
        self._closing = weakref.finalize(self, os.close, self._descriptor)
        self.address = f"/proc/{os.getpid()}/fd/{self._descriptor}" if kind == "ram" else address
        size = self._start + int(self._ends[-1])
        if os.fstat(self._descriptor).st_size < size:
            os.ftruncate(self._descriptor, size)  # without room for it: that is taken when it is written to
        self._map = mmap.mmap(self._descriptor, size, access=mmap.ACCESS_READ)
        self._states = np.frombuffer(self._map, np.int64, len(self._ends) * _STATE).reshape(-1, _STATE)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._read, self._kind, self.address, self._room)

    @classmethod
    def in_memory(cls, read: ImageReader, room: int | None = None) -> ImageCache:
        """A new cache in memory, which lives as long as a process that has it open.

        Raises:
            OSError: the system has no such files.
        """
        descriptor = os.memfd_create("images", os.MFD_CLOEXEC)
        try:
            return cls(read, "ram", f"/proc/self/fd/{descriptor}", room)
        finally:
            os.close(descriptor)

    def __call__(self, i: int) -> Image:
        """The i-th image of the annotations, (H, W, 3) uint8, read-only where it is the cache's own.

        Raises:
            ImageError: as ``read_image``.
        """
        now = self._file_of(i)
        if now is None:
            return self._read(i)  # raises, and says why
        kept = self._kept(i, now)
        if kept is not None:
            return kept
        image = self._read(i)
        self._keep(i, now, image)
        return image

    def _file_of(self, i: int) -> tuple[int, int] | None:
        """What tells one content of the image's file from another; None where there is no file."""
        if self._kind == "ram":
            return 1, 1
        try:
            return stamp(self._read.annotations.image_file(i))
        except OSError:
            return None

    def _place(self, i: int) -> tuple[int, int]:
        """Where an image begins in the file, and its bytes."""
        begin = int(self._ends[i - 1]) if i else 0
        return self._start + begin, int(self._ends[i]) - begin

    def _kept(self, i: int, now: tuple[int, int]) -> Image | None:
        time, size, checksum = self._states[i].tolist()
        if (time, size) != now:
            return None
        place, count = self._place(i)
        pixels = np.frombuffer(self._map, np.uint8, count, place)
        if self._kind == "disk" and not self._checked[i]:
            if zlib.crc32(pixels.data) != checksum:
                _log.warning(
                    "cached image %s is damaged: decoded again", self._read.annotations.image_path(i)
                )
                return None
            self._checked[i] = True
        return pixels.reshape(self._read.shape(i))

    def _keep(self, i: int, now: tuple[int, int], image: Image) -> None:
        if not self._writable or (self._room is not None and int(self._ends[i]) > self._room):
            return
        place, _ = self._place(i)
        try:
            # One writer at a time; a lock goes with its process. With the state, the last, the image counts.
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 8 * _STATE, 8 * _STATE * i)
        except OSError:
            return
        try:
            _write(self._descriptor, image.data, place)
            state = np.array([*now, zlib.crc32(image.data) if self._kind == "disk" else 0], np.int64)
            _write(self._descriptor, state.data, 8 * _STATE * i)
        except OSError as error:
            self._writable = False  # a full disk stays full: say it once, then decode
            _log.warning("images cannot be cached any more (%s): they are read every time", error.strerror)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 8 * _STATE, 8 * _STATE * i)


def _write(descriptor: int, data: memoryview, place: int) -> None:
    data = data.cast("B")
    while data:
        done = os.pwrite(descriptor, data, place)
        data, place = data[done:], place + done


def image_folder(cache_dir: str = "") -> Path:
    """Where images are kept on a disk, by default in the user's cache."""
    if cache_dir:
        return Path(cache_dir) / "images"
    home = cache_home() or Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return home / "horovod_yolo" / "images"


def disk_file(read: ImageReader, folder: Path) -> Path:
    """The file in that folder for such images, made where it is not there.

    Raises:
        OSError: there cannot be one, or its folder is somebody else's.
    """
    parts = (str(read.annotations.root.absolute()), read.annotations.digest, str(read.largest))
    name = hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
    own_folder(folder)
    file = folder / f"{name}.pixels"
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return file
