"""data.yaml: which files make up a data set, and what its classes are called."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from horovod_yolo.core.errors import UserError
from horovod_yolo.io.plain_yaml import read_mapping

MAX_YAML_BYTES = 1 << 20
_KEYS = ("path", "train", "val", "test", "nc", "names")
# YOLOv5 and the sites that export for it write these; none changes what we read.
_IGNORED_KEYS = ("download", "roboflow")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSpec:
    """What data.yaml says. The items of a split are paths: absolute, or relative to ``root``."""

    file: Path
    root: Path  # absolute
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]  # empty where the file has none
    names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.names)


def load_data_yaml(path: Path) -> DataSpec:
    """Read a data.yaml with YOLOv5's keys. A relative ``path:`` starts at the file's own folder.

    Nothing is downloaded or executed, and no image is looked for yet.

    Raises:
        UserError: the file is missing or is not such a file.
    """
    content = read_mapping(path, most_bytes=MAX_YAML_BYTES, what="a data file")
    _require_known_keys(content, path)
    names = _names(content, path)
    return DataSpec(
        file=path,
        root=_root(content.get("path"), path),
        train=_items(content, "train", path, required=True),
        val=_items(content, "val", path, required=True),
        test=_items(content, "test", path, required=False),
        names=names,
    )


def _require_known_keys(content: Mapping[str, Any], path: Path) -> None:
    for key in content:
        if key in _IGNORED_KEYS:
            _log.warning("%s: key %r is ignored; nothing is downloaded or executed", path, key)
        elif key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(_KEYS)}"
            raise UserError(f"unknown key {key!r}", where=path, fix=fix)


def _root(value: object, file: Path) -> Path:
    if value is None:
        return file.parent.absolute()
    if not isinstance(value, str) or not value or "\0" in value:
        raise UserError(
            f"path: {value!r} is not a folder", where=file, fix="write a path, or leave the key out"
        )
    return file.parent.absolute() / _expanded(value)


def _expanded(value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError:  # the account has no home folder
        return Path(value)


def _items(content: Mapping[str, Any], split: str, file: Path, *, required: bool) -> tuple[str, ...]:
    value = content.get(split)
    if value is None or value == []:
        if required:
            fix = f"add '{split}: images/{split}', a folder, list file or annotation file"
            raise UserError(f"has no {split!r}", where=file, fix=fix)
        return ()
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, str) or not item or "\0" in item:
            fix = "write a path, or a list of paths"
            raise UserError(f"{split}: {item!r} is not a path", where=file, fix=fix)
    return tuple(str(_expanded(item)) for item in items)


def _names(content: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    value = content.get("names")
    if isinstance(value, dict):
        value = _names_in_order(value, file)
    if not isinstance(value, list) or not value:
        fix = "add 'names: {0: first, 1: second}', or a list"
        raise UserError("has no usable 'names'", where=file, fix=fix)
    for name in value:
        if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
            fix = 'put names in quotes: YAML reads no, yes, on and off as true and false, for example "no"'
            raise UserError(f"class name {name!r} is not text", where=file, fix=fix)
    _require_count(content.get("nc"), len(value), file)
    return tuple(str(name) for name in value)


def _names_in_order(value: Mapping[Any, Any], file: Path) -> list[Any]:
    for i in range(len(value)):
        if i not in value:
            fix = f"number the {len(value)} names from 0 to {len(value) - 1}"
            raise UserError(f"names has no class {i}", where=file, fix=fix)
    return [value[i] for i in range(len(value))]


def _require_count(nc: object, count: int, file: Path) -> None:
    if nc is None:
        return
    if isinstance(nc, bool) or not isinstance(nc, int) or nc != count:
        raise UserError(
            f"nc is {nc!r}, but names has {count}", where=file, fix=f"write 'nc: {count}', or mend names"
        )
