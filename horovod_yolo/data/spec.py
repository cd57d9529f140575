"""data.yaml: which files make up a data set, and what its classes are called."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from horovod_yolo.core.class_names import find_names, listed, loose, match_names, without_own
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import LabelRules, Numbering
from horovod_yolo.io.plain_yaml import read_mapping
from horovod_yolo.io.remote import is_url, remote_path

MAX_YAML_BYTES = 1 << 20
_KEYS = ("path", "train", "val", "test", "nc", "names", "kpt_shape")
# YOLOv5 and the sites that export for it write these; none changes what we read.
_IGNORED_KEYS = (
    "download",
    "roboflow",
    "flip_idx",
    "kpt_names",
    "author",
    "license",
    "version",
    "description",
)

SINGLE = "item"  # what all classes are called where they are one, as in YOLOv5

_RULES = LabelRules()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSpec:
    """What data.yaml says. The items of a split are paths: absolute, or relative to ``root``."""

    file: Path
    root: Path  # absolute; or of a remote folder, see `io.remote`
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]  # empty where the file has none
    names: tuple[str, ...]  # of the classes, which labels get
    rules: LabelRules = _RULES
    numbered: Numbering | None = None  # where the file's own names are not the classes'

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that the file has: "train", "val" and maybe "test"."""
        return ("train", "val", "test") if self.test else ("train", "val")

    def items(self, split: str) -> tuple[str, ...]:
        """The items of "train", "val" or "test"."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names in the file, which its labels are numbered by."""
        return self.numbered.names if self.numbered else self.names

    @property
    def class_numbers(self) -> tuple[int | None, ...]:
        """The number that each class has in the file; None where it is not in there."""
        if self.numbered is None:
            return tuple(range(len(self.names)))
        number = {found: i for i, found in reversed([*enumerate(self.numbered.ids)]) if found is not None}
        return tuple(number.get(class_id) for class_id in range(len(self.names)))

    @property
    def mapped(self) -> Numbering | None:
        """Which of the file's own classes a number of its labels is, where ``--class-map`` says another.

        COCO and VOC have names in their files, which the map is about; here they are ``own_names``. What it
        sends to a name that only the model has is left to `for_classes`.
        """
        ours = {loose(name) for name in self.own_names}
        named = {
            loose(old): new for old, new in self.rules.class_map if not new.strip() or loose(new) in ours
        }
        if self.rules.first_release or not ours & named.keys():
            return None
        ids: list[int | None] = []
        for i, name in enumerate(self.own_names):
            own = loose(name) not in named
            ids.append(i if own else find_names((name,), self.own_names, named).ids[0])
        return Numbering(self.own_names, tuple(ids))

    def single_class(self) -> DataSpec:
        """The same data with all classes as one; a set that has one class anyway keeps its name."""
        if len(self.own_names) == 1:
            return self
        return replace(self, names=(SINGLE,), numbered=Numbering(self.own_names, (0,) * len(self.own_names)))

    def for_classes(self, names: Sequence[str], meeting: str) -> DataSpec:
        """The same data for a model of other classes: equal sets, or one a part of the other.

        Raises:
            UserError: strangers on both sides, or no name in common.
        """
        if tuple(names) == (SINGLE,) and loose(SINGLE) not in {loose(name) for name in self.own_names}:
            _log.info("%s: all its classes are one, as the model was trained with --single-cls", self.file)
            return self.single_class()
        class_map = without_own(dict(self.rules.class_map), names)
        match = match_names(self.own_names, names, class_map, meeting=meeting, where=self.file)
        if match.left_out:
            _log.info("%s: left out are %s, which the model does not know", self.file, listed(match.left_out))
        if match.absent:
            _log.info(
                "%s: not among its names are %s, which the model knows", self.file, listed(match.absent)
            )
        numbered = None if match.is_identity else Numbering(self.own_names, match.ids)
        return replace(self, names=tuple(names), numbered=numbered)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.names)


def load_data_yaml(path: Path, rules: LabelRules = _RULES) -> DataSpec:
    """Read a data.yaml with YOLOv5's keys. A relative ``path:`` starts at the file's own folder.

    Nothing is downloaded or executed, and no image is looked for yet.

    Raises:
        UserError: the file is missing or is not such a file.
    """
    content = read_mapping(path, most_bytes=MAX_YAML_BYTES, what="a data file", as_text=("names",))
    _require_known_keys(content, path)
    names = _names(content, path)
    return DataSpec(
        file=path,
        root=_root(content.get("path"), path),
        train=_items(content, "train", path, required=True),
        val=_items(content, "val", path, required=True),
        test=_items(content, "test", path, required=False),
        names=names,
        rules=replace(rules, keypoints=None if rules.first_release else _keypoints(content, path)),
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
    if is_url(value):
        try:
            return remote_path(value)
        except ValueError as error:
            fix = "write s3://bucket/folder, gs://bucket/folder or https://host/folder"
            raise UserError(f"path is no URL of a folder: {error}", where=file, fix=fix) from None
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
        if is_url(item):
            what = f"{split} is a URL"
            fix = f"write the folder's URL as 'path', and '{split}: {split}.columns'"
            raise UserError(what, where=file, fix=fix)
    return tuple(str(_expanded(item)) for item in items)


def _names(content: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """The class names as they are written: ``010`` and ``no`` are text here, not the number 8 and false."""
    value = content.get("names")
    if isinstance(value, dict):
        value = _names_in_order(value, file)
    if not isinstance(value, list) or not value:
        fix = "add 'names: {0: first, 1: second}', or a list"
        raise UserError("has no usable 'names'", where=file, fix=fix)
    for name in value:
        if not isinstance(name, str) or not name.strip():
            fix = "write a word, or a word in quotes, for each class"
            raise UserError(f"class name {name!r:.60} is not text", where=file, fix=fix)
        if name.splitlines() != [name]:  # it would break tables and reports
            raise UserError(f"class name {name!r:.60} has a line end", where=file, fix="write it in one line")
    _require_count(content.get("nc"), len(value), file)
    repeated = (
        sorted({name for name in value if value.count(name) > 1}) if len(set(value)) < len(value) else []
    )
    if repeated:
        _log.warning(
            "%s: several classes are called %s: nobody can tell them apart", file, listed(repeated, 5)
        )
    return tuple(value)


def _names_in_order(value: Mapping[str, Any], file: Path) -> list[Any]:
    """Names by number; keys are the text of numbers, quoted or not."""
    numbers = {int(key): name for key, name in value.items() if key.strip().isdecimal() and len(key) < 9}
    if len(numbers) < len(value):
        odd = next(key for key in value if not key.strip().isdecimal() or len(key) > 8)
        raise UserError(
            f"names has {odd!r:.60} for a class number", where=file, fix="number the names from 0"
        )
    for i in range(len(value)):
        if i not in numbers:
            fix = f"number the {len(value)} names from 0 to {len(value) - 1}"
            raise UserError(f"names has no class {i}", where=file, fix=fix)
    return [numbers[i] for i in range(len(value))]


def _keypoints(content: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    """Points and numbers a point that follow the box of a row, where the set says so."""
    value = content.get("kpt_shape")
    if value is None:
        return None
    whole = isinstance(value, list) and all(type(number) is int for number in value)
    if not whole or len(value) != 2 or value[0] < 1 or value[1] not in (2, 3):
        fix = "write the number of key points and 2 (x, y) or 3 (x, y, visible), such as [17, 3]"
        raise UserError(f"kpt_shape is {value!r:.60}", where=file, fix=fix)
    return value[0], value[1]


def _require_count(nc: object, count: int, file: Path) -> None:
    if nc is None:
        return
    if isinstance(nc, bool) or not isinstance(nc, int) or nc != count:
        raise UserError(
            f"nc is {nc!r:.60}, but names has {count}", where=file, fix=f"write 'nc: {count}', or mend names"
        )
