"""Archives that strangers wrote with ``torch.save``: their structure as inert data, their tensors on demand.

No code of a file runs and no package of its author is needed; see `inert_pickle`. What a file claims about
its tensors is compared with what is there before memory is taken for it.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import torch
from torch import Tensor

from horovod_yolo.io.inert_pickle import LARGEST_PROGRAM, Inert, Name, RefusedError, Rules, hashable, load

MOST_DIRECTORY = 1 << 20  # bytes of a zip's directory; that of a large model has 0.15 MB
MOST_DIMENSIONS = 8
_START_OF_ZIP = b"PK\x03\x04"
_START_OF_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # a pickled number that torch looks for
_CHUNK = 1 << 20
_LARGEST = 1 << 40  # of the numbers that make up a tensor's shape

_DTYPES = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_MODULES = (
    "torch.nn.",
    "models.",
    "utils.",
    "yolov5.",
    "ultralytics.",
)  # of networks, and of who trained them
_PLAIN_CLASSES = {
    *_DTYPES,
    *("torch.device", "torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"),
    *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *("numpy.ndarray", "numpy.dtype"),
}
_INERT_CALLS = (
    *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("_codecs.encode", "torch.device"),
)


@dataclass(frozen=True, slots=True)
class _Storage:
    """Numbers that lie in a row in a member of the archive."""

    dtype: torch.dtype
    member: str
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor that has not been read yet; it lies within its storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return self.storage.dtype


class TorchArchive:
    """An archive, open for reading.

    Args:
        file: it, at any place.
        size: its bytes.

    Attributes:
        root: what was saved: builtins, `Inert` and `StoredTensor`.

    Raises:
        RefusedError: it is damaged, in another format, or holds more than data.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        _require_zip(file)
        self._zip = zipfile.ZipFile(_Metered(file, size))
        self._members = {member.filename: member for member in self._zip.infolist()}
        _require_plain_members(self._zip.infolist(), size)
        self._folder = _folder_of(self._members)
        if self._small("byteorder") not in (None, b"little"):
            raise RefusedError("its numbers are big-endian, which is not read here")
        self._storages: dict[str, bytearray] = {}
        program = self._members[f"{self._folder}data.pkl"]
        if program.file_size > LARGEST_PROGRAM:
            raise RefusedError(f"its structure has {program.file_size >> 20} MiB, more than is read")
        self.root = load(bytes(self._read(program)), self._rules())

    def tensor(self, stored: StoredTensor) -> Tensor:
        """A tensor's values; tensors of one storage share its memory."""
        storage = stored.storage
        if storage.count == 0:
            return torch.empty(stored.shape, dtype=storage.dtype)
        if storage.member not in self._storages:
            self._storages[storage.member] = self._read(self._members[storage.member])
        numbers = torch.frombuffer(self._storages[storage.member], dtype=storage.dtype)
        return numbers.as_strided(stored.shape, stored.stride, stored.offset)

    def _small(self, name: str) -> bytes | None:
        member = self._members.get(self._folder + name)
        return self._zip.read(member).strip() if member is not None and member.file_size < 64 else None

    def _read(self, member: zipfile.ZipInfo) -> bytearray:
        content, place = bytearray(member.file_size), 0
        with self._zip.open(member) as source:
            while piece := source.read(_CHUNK):  # the last one compares the checksum
                content[place : place + len(piece)] = piece
                place += len(piece)
        if place != len(content):
            raise RefusedError(f"its member {member.filename!r:.80} is cut short")
        return content

    def _rules(self) -> Rules:
        functions: dict[str, Callable[[tuple[Any, ...]], Any]] = {
            "collections.OrderedDict": _dict,
            **dict.fromkeys(("__builtin__.set", "builtins.set"), _set),
            "torch.Size": _size,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_qtensor": _quantised,
            **{path: _inert(path) for path in _INERT_CALLS},
        }
        return Rules(functions, _is_class, self._storage)

    def _storage(self, identity: Any) -> _Storage:
        match identity:
            case ("storage", Name() as kind, str() as key, str(), int() as count):
                pass
            case _:
                raise RefusedError("it refers to something else than a tensor's storage")
        if kind.last.startswith("Q"):
            raise _quantised(())
        dtype, member = _DTYPES.get(kind.path), self._members.get(f"{self._folder}data/{key}")
        if dtype is None:
            raise RefusedError(f"it has tensors of the kind {kind.path!r:.60}")
        if member is None:
            raise RefusedError(f"the numbers of a tensor are missing ({key!r:.40})")
        if count < 0 or count * dtype.itemsize != member.file_size:
            raise RefusedError(f"it claims {count!s:.30} numbers in {member.file_size} bytes")
        return _Storage(dtype, member.filename, count)


class _Metered(io.RawIOBase):
    """A file of which no piece is read at once that is larger than a directory of members may be."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, size: int | None = -1) -> bytes:
        left = self._size - self._file.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > max(MOST_DIRECTORY, _CHUNK):
            raise RefusedError("it has more members than a checkpoint")
        return self._file.read(wanted)

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()


def _require_zip(file: BinaryIO) -> None:
    file.seek(0)
    start = file.read(len(_START_OF_OLD_FORMAT))
    if start == _START_OF_OLD_FORMAT:
        raise RefusedError("it is in torch's old format, from before 1.6, which is not read here")
    if not start.startswith(_START_OF_ZIP):
        raise RefusedError("it is no file of torch.save, safetensors or horovod_yolo")


def _require_plain_members(members: list[zipfile.ZipInfo], size: int) -> None:
    if any(member.compress_type for member in members):
        raise RefusedError("it is compressed, which files of torch.save are not")
    if any(member.flag_bits & 1 for member in members):
        raise RefusedError("it is encrypted")
    if sum(member.file_size for member in members) > size:
        raise RefusedError("its members claim more bytes than it has")
    if len({member.filename for member in members}) < len(members):
        raise RefusedError("two of its members have one name")
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise RefusedError(f"its member {member.filename!r:.80} leads out of the archive")


def _folder_of(members: dict[str, Any]) -> str:
    """The one folder that all is in, with its slash."""
    if any(name.endswith("/constants.pkl") for name in members):
        raise RefusedError("it is TorchScript, a program rather than weights")
    found = [name for name in members if name.endswith("/data.pkl")]
    if len(found) != 1 or not all(name.startswith(found[0][: -len("data.pkl")]) for name in members):
        raise RefusedError("its members are not those of a checkpoint")
    return found[0][: -len("data.pkl")]


def _is_class(path: str) -> bool:
    return path in _PLAIN_CLASSES or path.startswith(_MODULES)


def _inert(path: str) -> Callable[[tuple[Any, ...]], Inert]:
    return lambda arguments: Inert(Name(path), arguments)


def _quantised(_: tuple[Any, ...]) -> RefusedError:
    raise RefusedError("it is quantised, which cannot be trained or turned back into the model it was")


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise RefusedError("it makes an OrderedDict in a way that torch.save does not")
    return {}


def _set(arguments: tuple[Any, ...]) -> set[Any]:
    match arguments:
        case () | ([],):
            return set()
        case (list() as items,):
            return {hashable(item) for item in items}
    raise RefusedError("it makes a set of what is no list")


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    match arguments:
        case (tuple() as sizes,) if all(type(size) is int for size in sizes):
            return sizes
    raise RefusedError("a size is damaged")


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (_Storage() as storage, int() as offset, tuple() as shape, tuple() as stride, *_):
            pass
        case _:
            raise RefusedError("a tensor is damaged")
    numbers = (offset, *shape, *stride)
    sound = all(type(number) is int and 0 <= number < _LARGEST for number in numbers)
    if not sound or len(shape) != len(stride):
        raise RefusedError("a tensor has a negative or damaged size, stride or offset")
    if len(shape) > MOST_DIMENSIONS:
        raise RefusedError(f"a tensor has {len(shape)} dimensions")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    count = math.prod(shape)
    if count > storage.count or (count and last >= storage.count):
        raise RefusedError("a tensor reaches beyond its data")
    return StoredTensor(storage, offset, shape, stride)


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, *_):
            return tensor
    raise RefusedError("a parameter is damaged")
