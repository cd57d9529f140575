"""What a stranger's checkpoint may not do to us, beside running code, which ``weights_only`` prevents.

``torch.load`` alone would unpack compressed members of any size, allocate tensors far larger than the
file, and search a long unknown name with a regular expression for hours.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from typing import Any

import torch

from horovod_yolo.core.text import unwarned

# What `torch.load` and `zipfile` let through when the bytes are a stranger's.
DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    MemoryError,
)
LARGEST_PICKLE = 64 << 20  # all but the tensors' numbers; ours are below 1 MB
_START_OF_ARCHIVE = b"PK\x03\x04"
_NAMES_BY_OPCODE = {"INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}  # `torch.save` uses GLOBAL only
_STORAGES = ("Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double")
_HARMLESS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in _STORAGES),
}


def require_harmless(data: bytes) -> None:
    """Raise one of `DAMAGE` unless this is an archive of `torch.save` with tensors and builtins only."""
    if not data.startswith(_START_OF_ARCHIVE):
        raise ValueError("it is no archive")  # torch would take it for its old format
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if any(member.compress_type for member in members) or sum(m.file_size for m in members) > len(data):
            raise ValueError("it is compressed")
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len({member.filename for member in members}) < len(members) or len(pickles) != 1:
            raise ValueError("its members are not those of a checkpoint")
        if pickles[0].file_size > LARGEST_PICKLE:
            raise ValueError("its structure is too large")
        program = archive.read(pickles[0])
    with unwarned():
        for opcode, argument, _ in pickletools.genops(program):
            named = opcode.name in _NAMES_BY_OPCODE or (opcode.name == "GLOBAL" and argument not in _HARMLESS)
            if named:
                raise ValueError(f"it holds more than tensors and plain values: {argument!s:.80}")


def require_real_tensors(state: object, size: int) -> None:
    """Raise ValueError where a tensor claims more numbers than a file of ``size`` bytes can hold."""
    waiting: list[Any] = [state]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor) and value.numel() * value.element_size() > size:
            raise ValueError("a tensor is larger than the file")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
