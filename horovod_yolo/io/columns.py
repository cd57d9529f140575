"""Arrays in one file that many processes map: written once, checked once, never changed.

Layout: 16 bytes that name the format, the header's length (8 bytes, little endian), a JSON header, the
columns (each at a multiple of 64 bytes), and the SHA-256 of all that. The last is the file's key.

Who maps a file dies of SIGBUS when it is cut short meanwhile. So a file is mapped through a descriptor whose
content was read and compared with its key before, by this process or by the one that hands the address on;
other processes open that very descriptor, whatever has become of the name.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"hvd_yolo columns"
_ALIGNMENT = 64
_KEY_BYTES = 32
_BYTES_AT_ONCE = 1 << 22  # the interpreter's other threads run between two of them
_MOST_HEADER_BYTES = 1 << 24

Column = NDArray[Any]


class DamagedError(ValueError):
    """A file is not what it was when it was written."""


class ColumnFile:
    """A mapped file. Pickled, it is its address: what unpickles it opens the same file.

    Attributes:
        about: what the writer said of the columns.
        key: names the content.
    """

    def __init__(self, descriptor: int, key: str) -> None:
        """Map a file that is known to be whole. The descriptor is this object's from now on."""
        self._closing = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as whole:
            if whole[-_KEY_BYTES:].hex() != key:
                raise DamagedError("it is another file")
            header, start = _header(whole)
        self.key = key
        self.about: dict[str, Any] = header["about"]
        self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        self._columns = {name: self._view(start, *place) for name, place in header["columns"].items()}

    def __getitem__(self, name: str) -> Column:
        """A column, read-only."""
        return self._columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    @property
    def columns(self) -> dict[str, Column]:
        """All columns by name."""
        return dict(self._columns)

    @property
    def address(self) -> str:
        """A path under which other processes of this user and host find the file while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._map)

    def content(self, start: int, most_bytes: int) -> bytes:
        """Bytes of the file from ``start`` on."""
        return os.pread(self._descriptor, most_bytes, start)

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open_columns, (self.address, self.key)

    def _view(self, start: int, kind: str, shape: list[int], offset: int) -> Column:
        count = math.prod(shape)
        return np.frombuffer(self._map, np.dtype(kind), count, start + offset).reshape(shape)


def write_columns(file: BinaryIO, about: Mapping[str, Any], columns: Mapping[str, Column]) -> str:
    """Write columns to an empty file; the file's key.

    Raises:
        OSError: the disk is full, for one.
    """
    places, offset = {}, 0
    for name, column in columns.items():
        places[name] = (column.dtype.str, column.shape, offset)
        offset += _padded(column.nbytes)
    header = json.dumps({"about": dict(about), "columns": places}).encode()
    total = hashlib.sha256()

    def write(data: bytes | memoryview) -> None:
        total.update(data)
        file.write(data)

    front = _MAGIC + len(header).to_bytes(8, "little") + header
    write(front + bytes(_padded(len(front)) - len(front)))
    for column in columns.values():
        data = bytes_of(column)
        for start in range(0, len(data), _BYTES_AT_ONCE):
            write(data[start : start + _BYTES_AT_ONCE])
        write(bytes(_padded(len(data)) - len(data)))
    file.write(total.digest())
    return total.hexdigest()


def bytes_of(column: Column) -> memoryview:
    """A column's bytes, in order; not copied where they lie in order already."""
    return memoryview(np.ascontiguousarray(column).reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def columns_in_memory(about: Mapping[str, Any], columns: Mapping[str, Column]) -> ColumnFile:
    """A file that is on no disk."""
    descriptor = os.memfd_create("columns")
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        key = write_columns(file, about, columns)
    return ColumnFile(descriptor, key)


def open_columns(address: str, key: str) -> ColumnFile:
    """Open a file that another process has checked.

    Raises:
        OSError: there is none.
        DamagedError: it is another one.
    """
    return ColumnFile(os.open(address, os.O_RDONLY | os.O_CLOEXEC), key)


def read_about(path: Path) -> dict[str, Any]:
    """What the writer said of a file's columns, unchecked.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is no such file.
    """
    with path.open("rb") as file:
        front = file.read(len(_MAGIC) + 8)
        length = int.from_bytes(front[len(_MAGIC) :], "little")
        if len(front) < len(_MAGIC) + 8 or length > _MOST_HEADER_BYTES:
            raise DamagedError("it has no header")
        about: dict[str, Any] = _header(front + file.read(length))[0]["about"]
    return about


def check_columns(path: Path, *, in_place: bool = True) -> ColumnFile:
    """Read all of a file, compare it with its key, and map it.

    Args:
        path: of the file; no link.
        in_place: map the file itself, which nobody may change; else a copy in memory.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is not whole.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if in_place:
        return check_descriptor(descriptor)
    copy = os.memfd_create("columns")
    with os.fdopen(descriptor, "rb") as source, os.fdopen(copy, "wb", closefd=False) as target:
        shutil.copyfileobj(source, target, _BYTES_AT_ONCE)
    return check_descriptor(copy)


def check_descriptor(descriptor: int) -> ColumnFile:
    """`check_columns` of an open file, whose descriptor is the result's from now on."""
    try:
        key = _checked(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return ColumnFile(descriptor, key)


def _checked(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    total, at, end = hashlib.sha256(), 0, size - _KEY_BYTES
    while at < end:
        piece = os.pread(descriptor, min(_BYTES_AT_ONCE, end - at), at)
        if not piece:
            raise DamagedError("it is cut off")
        total.update(piece)
        at += len(piece)
    if end <= 0 or os.pread(descriptor, _KEY_BYTES, end) != total.digest():
        raise DamagedError("its checksum is not that of its content")
    return total.hexdigest()


def _header(content: bytes | mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header, and where the columns begin."""
    begin = len(_MAGIC) + 8
    end = begin + int.from_bytes(content[len(_MAGIC) : begin], "little")
    try:
        if content[: len(_MAGIC)] != _MAGIC:
            raise DamagedError("it is no file of columns")
        header = json.loads(content[begin:end])
        if not isinstance(header, dict) or not {"about", "columns"} <= header.keys():
            raise DamagedError("it has no header")
    except ValueError as error:
        raise DamagedError(str(error)) from error
    return header, _padded(end)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
