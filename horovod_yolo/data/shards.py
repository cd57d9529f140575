"""Shards: tar files in which images are read by their place, without unpacking them.

Each begins with a mark, a global pax header that names the pack and the shard's number: one short read tells
that a file is the one its index speaks of.
"""

from __future__ import annotations

import os
import tarfile
import weakref
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from horovod_yolo.io.remote import RemoteFolder, shown

MOST_OPEN = 256  # of a process, which may often have 1024 files open
_WHOSE = "horovod-yolo pack"


@dataclass(frozen=True, slots=True)
class PackedImage:
    """An image in a shard.

    Attributes:
        path: where the image would be, were the pack unpacked.
        shards: of the pack.
        shard: number of the image's.
        offset: bytes before its content in the shard.
        length: bytes of its content.
        crc32: of its content.
    """

    path: Path
    shards: Shards
    shard: int
    offset: int
    length: int
    crc32: int

    def read(self) -> bytes:
        """The bytes of the image's file, which are those that were packed.

        Raises:
            OSError: the shard is missing, unreadable or damaged here.
        """
        content = self.shards.read(self.shard, self.offset, self.length)
        if zlib.crc32(content) != self.crc32:
            raise OSError(f"{shown(self.shards.path(self.shard))} is damaged where this image is packed")
        return content


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """An image's file that has been read: what it is called, and its content."""

    path: Path
    content: bytes

    def read(self) -> bytes:
        """The content."""
        return self.content


ImageFile = Path | PackedImage | ImageBytes


def stamp(file: Path | PackedImage) -> tuple[int, int]:
    """Two numbers, not both 0, that tell one content of an image's file from another.

    Raises:
        OSError: there is no such file.
    """
    if isinstance(file, PackedImage):
        file.shards.require(file.shard)
        return file.crc32, file.length
    status = file.stat()
    return status.st_mtime_ns, status.st_size


class Shards:
    """The shards of a split's pack, each opened when it is first read from; or asked for by ranges."""

    def __init__(self, folder: Path, pack: Mapping[str, Any]) -> None:
        """``pack`` is what the index says of it."""
        self.folder = folder
        self.key: str = pack["key"]
        self.split: str = pack["split"]
        self._remote = RemoteFolder.at(folder)
        self._opened = lru_cache(MOST_OPEN)(OpenFile)

    def path(self, shard: int) -> Path:
        """Where a shard is."""
        return self.folder / shard_name(self.split, shard)

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Bytes of a shard; fewer than ``length`` where it ends.

        Raises:
            OSError: it is missing or unreadable.
        """
        if self._remote is not None:
            return self._remote.read(shard_name(self.split, shard), offset, length)
        return self._opened(self.path(shard)).read(offset, length)

    def beginning(self, shard: int, length: int) -> tuple[bytes, int]:
        """The first bytes of a shard, and how many it has.

        Raises:
            OSError: it is missing or unreadable.
        """
        if self._remote is not None:
            name = shard_name(self.split, shard)
            return self._remote.read(name, 0, length), self._remote.size(name)
        with self.path(shard).open("rb") as file:
            return file.read(length), os.fstat(file.fileno()).st_size

    def require(self, shard: int) -> None:
        """See that a shard is there; a remote one is not asked for: only reading it tells.

        Raises:
            OSError: it is not.
        """
        if self._remote is None:
            self.path(shard).stat()


class OpenFile:
    """An open file. Whoever reads from it keeps it open, also where it is closed to make room for others."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._closing = weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of it; fewer than ``length`` where it ends."""
        return os.pread(self._descriptor, length, offset)


def shard_name(split: str, shard: int) -> str:
    """A shard's file name."""
    return f"{split}-{shard:05d}.tar"


def mark(key: str, shard: int) -> bytes:
    """The first bytes of a shard."""
    return tarfile.TarInfo.create_pax_global_header({"comment": f"{_WHOSE} {key} {shard}"})


def is_shard(path: Path) -> bool:
    """Whether a file begins as a shard of any pack.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return f" comment={_WHOSE} ".encode() in file.read(1024)
