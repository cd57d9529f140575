"""The stage: copies of a split's images on a disk of this host, as far as they are there.

They lie in parts: of a pack its shards as they are, of loose files many images one after the other with a
checksum of each. A part gets its name when it is whole, and the folder is named for the content that was
scanned. So whoever wants an image just opens its part: ranks and data workers need no word from who copies.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Ints
from horovod_yolo.data.ahead import THREADS, made_ahead
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.read import ImageError, read_content
from horovod_yolo.data.scan import content_hash
from horovod_yolo.data.shards import MOST_OPEN, ImageBytes, OpenFile, Shards, shard_name
from horovod_yolo.io.columns import bytes_of
from horovod_yolo.io.remote import shown

PART_BYTES = 256 << 20  # of loose images
_PIECE_BYTES = 4 << 20
_CHECKSUM_BYTES = 4

_log = logging.getLogger(__name__)
Lost = Callable[[str], None]  # is told of what could not be copied, and why


class UnreadError(Exception):
    """A part that the source does not give, which was said already."""


class Parts(Protocol):
    """How a split's images lie in parts, and what is copied into them."""

    annotations: Annotations
    sizes: Ints  # (parts,) bytes; 0 for a number that no part has

    @property
    def key(self) -> str:
        """Names what is in all of them."""

    def name(self, part: int) -> str:
        """Of the file."""

    def place(self, i: int) -> tuple[int, int, int]:
        """Of the i-th image: part, bytes before it, bytes."""

    def checksum(self, i: int, file: OpenFile) -> int:
        """CRC-32 of the i-th image in its part; 0 where it is not in there."""

    def is_full(self, part: int, file: OpenFile) -> bool:
        """Whether all images of a part are in there."""

    def pieces(self, part: int, lost: Lost) -> Iterator[bytes]:
        """What is in a part, from the source.

        Raises:
            UnreadError: no use in copying it; ``lost`` was told why.
        """


class OfPack:
    """The shards of a pack."""

    def __init__(self, annotations: Annotations) -> None:
        file = annotations.file
        self.annotations = annotations
        self.sizes: Ints = file["shard_bytes"].astype(np.int64)
        self._source = Shards(annotations.root, file.about["pack"])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.annotations,)

    @property
    def key(self) -> str:
        """Of the pack, and what its shards are."""
        file = self.annotations.file
        return _key(self._source.key, file["shard_bytes"], file["shard_sha256"])

    def name(self, part: int) -> str:
        """As in the pack."""
        return shard_name(self._source.split, part)

    def place(self, i: int) -> tuple[int, int, int]:
        """As in the pack."""
        part, offset, length = (int(self.annotations.file[name][i]) for name in ("shard", "offset", "length"))
        return part, offset, length

    def checksum(self, i: int, file: OpenFile) -> int:
        """The index has it."""
        return int(self.annotations.file["crc32"][i])

    def is_full(self, part: int, file: OpenFile) -> bool:
        """It is."""
        return True

    def pieces(self, part: int, lost: Lost) -> Iterator[bytes]:
        """The shard, or an error: it is copied whole or not at all."""
        starts = range(0, int(self.sizes[part]), _PIECE_BYTES)
        read = partial(self._piece, part)  # several at once: a store gives several ranges sooner than one
        with closing(made_ahead(read, starts, most=THREADS)) as pieces:
            for piece in pieces:
                if isinstance(piece, str):
                    lost(f"{shown(self._source.path(part))}: {piece}")
                    raise UnreadError
                yield piece

    def _piece(self, part: int, start: int) -> bytes | str:
        wanted = min(_PIECE_BYTES, int(self.sizes[part]) - start)
        try:
            piece = self._source.read(part, start, wanted)
        except OSError as error:
            return error.strerror or str(error)
        return piece if len(piece) == wanted else "it is shorter than it was when the job started"


class OfLooseImages:
    """Loose images in their order, so many that a part has `PART_BYTES`, and behind them their checksums."""

    def __init__(self, annotations: Annotations, split: str) -> None:
        file, usable = annotations.file, annotations.file["usable"]
        self.annotations = annotations
        self._split = split
        self._rows = np.flatnonzero(usable)
        self._ends: Ints = np.cumsum(file["image_state"][:, 0][usable].astype(np.int64))
        begins = np.concatenate(([0], self._ends[:-1]))
        parts = int(begins[-1]) // PART_BYTES + 1
        self._firsts: Ints = np.append(
            np.searchsorted(begins, PART_BYTES * np.arange(parts)), len(self._ends)
        )
        counts = np.diff(self._firsts)
        until = np.append(0, self._ends)[self._firsts]
        self.sizes: Ints = np.diff(until) + _CHECKSUM_BYTES * counts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.annotations, self._split)

    @property
    def key(self) -> str:
        """Of what the scan has seen in the images."""
        return _key(self._split, self.annotations.file["image_content"][self._rows], self._ends)

    def name(self, part: int) -> str:
        """With the split's name."""
        return f"{self._split}-{part:05d}.images"

    def place(self, i: int) -> tuple[int, int, int]:
        """By the sizes that the scan has seen."""
        begin = self._begin(i)
        part = begin // PART_BYTES
        return part, begin - self._begin(int(self._firsts[part])), int(self._ends[i]) - begin

    def checksum(self, i: int, file: OpenFile) -> int:
        """The part has it."""
        part = self._begin(i) // PART_BYTES
        end, after = int(self.sizes[part]), int(self._firsts[part + 1])
        return int.from_bytes(file.read(end - _CHECKSUM_BYTES * (after - i), _CHECKSUM_BYTES), "little")

    def is_full(self, part: int, file: OpenFile) -> bool:
        """Whether each has its checksum."""
        count, end = len(self._images(part)), int(self.sizes[part])
        table = file.read(end - _CHECKSUM_BYTES * count, _CHECKSUM_BYTES * count)
        return bool(np.frombuffer(table, "<u4").all())

    def pieces(self, part: int, lost: Lost) -> Iterator[bytes]:
        """The images that are what was scanned; zeros for the others, which are read from the source."""
        images = self._images(part)
        checksums = np.zeros(len(images), "<u4")
        with closing(made_ahead(self._content, images)) as contents:
            for place, content in enumerate(contents):
                if isinstance(content, str):
                    lost(content)
                    yield bytes(self.place(images[place])[2])
                else:
                    checksums[place] = zlib.crc32(content)
                    yield content
        if not checksums.any():
            raise UnreadError
        yield bytes(bytes_of(checksums))

    def _content(self, i: int) -> bytes | str:
        """What the scan has seen; else why it is not."""
        try:
            content = read_content(self.annotations.image_file(i))
        except ImageError as error:
            return str(error)
        scanned = self.annotations.file["image_content"][self._rows[i]].tobytes()
        if content_hash(content) != scanned:
            return f"{self.annotations.image_path(i)}: it has changed since the scan"
        return content

    def _images(self, part: int) -> range:
        return range(*self._firsts[part : part + 2].tolist())

    def _begin(self, i: int) -> int:
        return int(self._ends[i - 1]) if i else 0


def parts_of(annotations: Annotations, split: str) -> OfPack | OfLooseImages:
    """How the images of a split are staged."""
    return OfPack(annotations) if "pack" in annotations.file.about else OfLooseImages(annotations, split)


class Staged:
    """What there is of parts in a folder. Picklable; each process opens what it reads from.

    A part that is damaged is removed and said; its images come from the source then, and so they do where
    there is no part yet.
    """

    def __init__(self, parts: Parts, folder: Path) -> None:
        self.parts = parts
        self.folder = folder
        self._bad: set[int] = set()
        self._opened = lru_cache(MOST_OPEN)(OpenFile)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.parts, self.folder)

    def path(self, part: int) -> Path:
        """Where a part is, or will be."""
        return self.folder / self.parts.name(part)

    def __call__(self, i: int) -> ImageBytes | None:
        """The i-th image's file; None where there is no copy of it."""
        part, offset, length = self.parts.place(i)
        if part in self._bad:
            return None
        try:
            file = self._opened(self.path(part))
            content, checksum = file.read(offset, length), self.parts.checksum(i, file)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._distrust(part, error.strerror or str(error))
            return None
        if checksum == 0:
            return None
        if zlib.crc32(content) != checksum:
            self._distrust(part, "it is damaged")
            return None
        return ImageBytes(self.parts.annotations.image_path(i), content)

    def _distrust(self, part: int, reason: str) -> None:
        self._bad.add(part)
        path = self.path(part)
        try:
            path.unlink()
        except FileNotFoundError:
            return  # another process has seen it, and said so
        except OSError as error:
            reason = f"{reason}, and cannot be removed: {error.strerror}"
        _log.warning("stage: %s: %s: its images are read from the source", path, reason)

    def missing(self) -> list[int]:
        """The parts that are still to be copied. What is there and not all there is removed.

        Raises:
            OSError: that cannot be done.
        """
        return [part for part in np.flatnonzero(self.parts.sizes).tolist() if not self._is_whole(part)]

    def _is_whole(self, part: int) -> bool:
        path = self.path(part)
        try:
            whole = path.stat().st_size == self.parts.sizes[part]
            whole = whole and self.parts.is_full(part, OpenFile(path))
        except FileNotFoundError:
            return False
        if not whole:
            path.unlink()
        return whole


def _key(*of: str | NDArray[Any]) -> str:
    total = hashlib.sha256()
    for each in of:
        total.update(each.encode() if isinstance(each, str) else bytes_of(each))
    return total.hexdigest()
