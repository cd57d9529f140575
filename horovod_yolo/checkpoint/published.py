"""Weights that others published or trained: modules or tensors in a file of torch.save, or safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from horovod_yolo.checkpoint.torch_archive import StoredTensor, TorchArchive
from horovod_yolo.checkpoint.vetting import DAMAGE
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.text import one_line
from horovod_yolo.io.files import opened
from horovod_yolo.io.inert_pickle import Inert, RefusedError

MOST_MODULES = 20_000
MOST_TENSORS = 20_000
MOST_DEPTH = 32  # of modules in modules
MOST_CLASSES = 100_000
LARGEST_HEADER = 4 << 20  # of safetensors, bytes; that of a large model has 0.15 MB
_PART_OF_A_KEY = re.compile(r"\w{1,64}", re.ASCII)
_BEFORE_KEYS = ("module.", "model.model.")  # of a wrapped model, of a trainer's own wrapper
_FIX = "use a file as its trainer wrote it: a published one, a best.pt or last.pt, a state dict, safetensors"


@dataclass
class Published:
    """What a file says of its model. The tensors are read when they are asked for, while it is open."""

    path: Path
    size: int
    shapes: Mapping[str, tuple[int, ...]]  # by published keys, in the file's order
    classes: frozenset[str] = frozenset()  # of its modules, without their packages; empty where it has none
    names: tuple[str, ...] | None = None
    strides: tuple[float, ...] | None = None
    imgsz: int = 0  # trained at; 0: not said
    license: str = ""
    model: str = ""  # its name in the zoo and the head that detects, where the file was exported here
    head: str = ""
    exported: bool = False  # here
    read: Callable[[str], Tensor] = field(repr=False, kw_only=True)

    def tensors(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """The values of some keys, each in the file's number format.

        Raises:
            UserError: they are not finite numbers, damaged or more than the file can hold.
        """
        taken: dict[str, Tensor] = {}
        left = self.size
        with _as_user_error(self.path):
            for key in keys:
                value = self.read(key)
                left -= value.numel() * value.element_size()
                if left < 0:
                    raise RefusedError("its tensors hold more numbers than the file")
                _require_numbers(key, value)
                taken[key] = value
        return taken


@contextmanager
def opened_published(path: Path) -> Iterator[Published]:
    """A file of somebody else's weights.

    Raises:
        UserError: it is missing, damaged, in an unknown form, or holds more than data.
    """
    with ExitStack() as until_done:
        with _as_user_error(path):
            file, size = until_done.enter_context(opened(path))
            described = (_of_safetensors if _is_safetensors(file) else _of_archive)(path, file, size)
        yield described


@contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        known = (
            reason if isinstance(error, RefusedError | OSError) else f"damaged or cut short ({reason:.100})"
        )
        raise UserError(known or type(error).__name__, where=path, fix=_FIX) from None


def _require_numbers(key: str, value: Tensor) -> None:
    if not value.is_floating_point():
        if value.dtype != torch.int64 or value.numel() > 1:  # but for counters
            raise RefusedError(f"its {key} is of {value.dtype}: quantised weights cannot be used here")
        return
    if value.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(value)):
        raise RefusedError(
            f"its {key} holds numbers that are not finite: the training that wrote it diverged"
        )


def _of_archive(path: Path, file: BinaryIO, size: int) -> Published:
    archive = TorchArchive(file, size)
    root = archive.root
    model = _model_in(root)
    stored, classes = _in_modules(model) if isinstance(model, Inert) else (_in_dict(model), frozenset())
    if not stored:
        raise RefusedError("it holds neither a model nor tensors by name")
    about = model.attributes if isinstance(model, Inert) else _dict_of(root)
    tensors = dict(_with_published_keys(stored))
    return Published(
        path,
        size,
        {key: tensor.shape for key, tensor in tensors.items()},
        classes,
        names=_names(about.get("names")),
        strides=_strides(about.get("stride"), archive),
        imgsz=_imgsz(_dict_of(root)),
        license=one_line(_dict_of(root).get("license")),
        read=lambda key: archive.tensor(tensors[key]),
    )


def _model_in(root: Any) -> Any:
    """The averaged model where there is one, else the model itself; modules or a dict of tensors."""
    if isinstance(root, Inert):
        return root
    for key in ("ema", "model", "state_dict"):
        if isinstance(found := _dict_of(root).get(key), Inert | dict) and found:
            return found
    return root


def _in_dict(tensors: Any) -> dict[str, StoredTensor]:
    found = {key: value for key, value in _dict_of(tensors).items() if isinstance(value, StoredTensor)}
    for key in found:
        if not isinstance(key, str) or not all(_PART_OF_A_KEY.fullmatch(part) for part in key.split(".")):
            raise RefusedError(f"{key!r:.80} is no name of a tensor")
    if len(found) > MOST_TENSORS:
        raise RefusedError(f"it has {len(found)} tensors")
    return found


def _in_modules(top: Inert) -> tuple[dict[str, StoredTensor], frozenset[str]]:
    """The tensors below a module in the order of its ``state_dict()``, and the classes that modules have."""
    tensors: dict[str, StoredTensor] = {}
    classes: set[str] = set()
    waiting: list[tuple[tuple[str, ...], Inert]] = [((), top)]
    for _ in range(MOST_MODULES):
        if not waiting:
            return tensors, frozenset(classes)
        path, module = waiting.pop()
        classes.add(module.cls.last[:64])
        for name, value in _own_tensors(module):
            tensors[".".join((*path, _part(name)))] = value
        children = [
            ((*path, _part(name)), child)
            for name, child in _dict_of(module.attributes.get("_modules")).items()
            if child is not None
        ]
        if len(path) >= MOST_DEPTH or any(not isinstance(child, Inert) for _, child in children):
            break
        waiting += reversed(children)
    raise RefusedError("its modules do not make up a network")


def _own_tensors(module: Inert) -> Iterator[tuple[Any, StoredTensor]]:
    left_out = module.attributes.get("_non_persistent_buffers_set")
    for group in ("_parameters", "_buffers"):
        for name, value in _dict_of(module.attributes.get(group)).items():
            if isinstance(value, StoredTensor) and not (isinstance(left_out, set) and name in left_out):
                yield name, value


def _part(name: Any) -> str:
    if not isinstance(name, str) or not _PART_OF_A_KEY.fullmatch(name):
        raise RefusedError(f"{name!r:.80} is no name of a part of a network")
    return name


def _with_published_keys(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys that begin with ``model.`` and a row, whatever they were wrapped in."""
    prefix = ""
    for before in _BEFORE_KEYS:
        if all(key.startswith(prefix + before) for key in tensors):
            prefix += before
    added = "" if all(key.startswith("model.", len(prefix)) for key in tensors) else "model."
    for key, value in tensors.items():
        yield added + key[len(prefix) :], value


def _dict_of(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _names(given: Any) -> tuple[str, ...] | None:
    """Class names from a list, or from a dict by number."""
    if isinstance(given, dict):
        if set(given) != set(range(len(given))):
            raise RefusedError("its classes are not numbered 0, 1, 2, ...")
        given = [given[i] for i in range(len(given))]
    if not isinstance(given, list | tuple) or not given:
        return None
    if len(given) > MOST_CLASSES or not all(isinstance(name, str | int | float) for name in given):
        raise RefusedError("the names of its classes are damaged")
    return tuple(one_line(str(name)) for name in given)


def _strides(given: Any, archive: TorchArchive) -> tuple[float, ...] | None:
    if not isinstance(given, StoredTensor) or len(given.shape) != 1 or given.shape[0] > 8:
        return None
    return tuple(archive.tensor(given).tolist())


def _imgsz(root: dict[Any, Any]) -> int:
    for key in ("train_args", "opt"):
        size = _dict_of(root.get(key)).get("imgsz")
        if type(size) is int and 32 <= size <= 1 << 14:
            return size
    return 0


def _is_safetensors(file: BinaryIO) -> bool:
    """By the first bytes: the length of a header, and JSON."""
    file.seek(0)
    return file.read(9)[8:] == b"{"


def _of_safetensors(path: Path, file: BinaryIO, size: int) -> Published:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, LARGEST_HEADER):
        raise RefusedError(f"its header claims {length} bytes")
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        fix = "install the package: pip install safetensors"
        raise UserError("this is a file of safetensors", where=path, fix=fix) from None
    try:
        archive: Any = safe_open(path, framework="pt")
        shapes = {key: tuple(archive.get_slice(key).get_shape()) for key in archive.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise RefusedError(f"damaged or cut short ({error!s:.100})") from error
    keys = dict(_with_published_keys({key: key for key in shapes}))
    about = archive.metadata() or {}
    return Published(
        path,
        size,
        {published: shapes[key] for published, key in keys.items()},
        names=_names(_names_of_text(about.get("names", ""))),
        license=one_line(about.get("license")),
        **_exported(about),
        read=lambda key: archive.get_tensor(keys[key]),
    )


def _exported(about: Mapping[str, str]) -> dict[str, Any]:
    """What `export` says beside names and licence."""
    if about.get("author") != "horovod_yolo":
        return {}
    sides = _json(about.get("imgsz", ""))
    side = max(sides) if isinstance(sides, list) and sides and all(type(one) is int for one in sides) else 0
    return {
        "exported": True,
        "model": one_line(about.get("model")),
        "head": one_line(about.get("head")),
        "imgsz": _imgsz({"opt": {"imgsz": side}}),
    }


def _names_of_text(text: str) -> Any:
    """Names as metadata have them, which is text: JSON of a list, or of a dict by number."""
    given = _json(text)
    try:
        return {int(key): name for key, name in given.items()} if isinstance(given, dict) else given
    except ValueError:
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
