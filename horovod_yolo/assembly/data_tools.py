"""``horovod-yolo data convert`` and ``data split``: all ranks scan and write, never over anything."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from horovod_yolo.assembly.data import annotation_folder
from horovod_yolo.assembly.meetings import together_meanwhile
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.config.class_map import ClassMap
from horovod_yolo.core.class_names import listed
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.conversion import (
    Kind,
    NewSet,
    Pick,
    all_of,
    finish,
    require_writable,
    write_images,
)
from horovod_yolo.data.formats import Entry, LabelRules, read_labels
from horovod_yolo.data.formats.annotated import ListLabels
from horovod_yolo.data.formats.numbered import unnumbered
from horovod_yolo.data.formats.yolo import YoloLabels
from horovod_yolo.data.listing import list_entries, require_mapped
from horovod_yolo.data.pack import index_of
from horovod_yolo.data.spec import DataSpec, load_data_yaml
from horovod_yolo.data.splitting import assign
from horovod_yolo.data.unkept import beside_boxes, lost_crowds
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Flags of ``horovod-yolo data convert``."""

    data: str
    to: Kind
    out: Path
    copy: bool = False
    class_map: ClassMap = ()
    skip_bad_classes: bool = False
    cache_dir: str = ""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Flags of ``horovod-yolo data split``."""

    data: str
    out: Path
    ratio: tuple[float, ...] = (0.8, 0.2)
    seed: int = 0
    copy: bool = False
    class_map: ClassMap = ()
    skip_bad_classes: bool = False
    cache_dir: str = ""

    def __post_init__(self) -> None:
        if len(self.ratio) not in (2, 3) or min(self.ratio) <= 0:
            fix = "give the shares of train, val and maybe test, such as 0.8 0.1 0.1"
            raise UserError(f"--ratio {' '.join(map(str, self.ratio))}", fix=fix)
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}", fix="it must be 0 or more")


def convert_data(options: ConvertOptions, comm: Communicator) -> int:
    """Write all splits of a set in another format; how many images there are. *Collective.*

    Raises:
        UserError: on all ranks alike.
    """
    spec, annotations = _scanned(options, comm)
    on_rank_0(comm, lambda: _say_unkept(spec, annotations, options.to))
    parts = {split: all_of(of) for split, of in annotations.items()}
    new = NewSet(options.to, options.out, parts, spec.names, options.copy)
    _write(new, spec, comm, {})
    return sum(map(len, parts.values()))


def split_data(options: SplitOptions, comm: Communicator) -> dict[str, int]:
    """Divide all images of a set anew; how many each split gets. *Collective.*

    Label files of YOLO stay what they are, and lists name the images. Sets in other formats get COCO files,
    or annotation lists where they had these.

    Raises:
        UserError: on all ranks alike.
    """
    spec, annotations = _scanned(options, comm)
    pool = {pick.place: pick for of in annotations.values() for pick in all_of(of)}
    picks = list(pool.values())
    names = [pick.annotations.path(pick.i) for pick in picks]
    split = assign(names, [pick.record.classes for pick in picks], options.ratio, options.seed)
    parts = {
        name: [picks[i] for i in np.flatnonzero(split == k).tolist()]
        for k, name in enumerate(SPLITS[: len(options.ratio)])
    }
    together(comm, lambda: _require_images(parts))
    new, extra = together(comm, lambda: _as_it_was(spec, parts, options))
    if new.labels is None:
        on_rank_0(comm, lambda: _say_unkept(spec, annotations, new.kind))
    elif options.class_map:
        log.warning("label files are as they were: give --class-map again where you train")
    _write(new, spec, comm, extra)
    return {name: len(some) for name, some in parts.items()}


def _scanned(
    options: ConvertOptions | SplitOptions, comm: Communicator
) -> tuple[DataSpec, dict[str, Annotations]]:
    rules = LabelRules(options.class_map, options.skip_bad_classes)
    file = Path(data_here(options.data, comm))
    spec = together(comm, lambda: load_data_yaml(file, rules))
    together(comm, lambda: require_mapped(spec))
    on_rank_0(comm, lambda: _require_empty(options.out))
    known = annotation_folder(options.cache_dir)
    return spec, {split: shared_annotations(spec, split, comm, known) for split in spec.splits}


def _require_empty(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        what = f"cannot be written to: {error.strerror or error}"
        raise UserError(what, where=folder, fix="give another folder to --out") from error
    if there:
        what = f"is not empty: {listed(there)}"
        raise UserError(what, where=folder, fix="give an empty or a new folder to --out")


def _require_images(parts: Mapping[str, Sequence[Pick]]) -> None:
    if empty := [name for name, some in parts.items() if not some]:
        sizes = ", ".join(f"{name} {len(some)}" for name, some in parts.items())
        fix = "give it a larger share with --ratio, or more images"
        raise UserError(f"{listed(empty)} would have no image ({sizes})", where="--ratio", fix=fix)


def _write(new: NewSet, spec: DataSpec, comm: Communicator, extra: dict[str, Any]) -> None:
    """Write it, every rank its share of the images. *Collective.*"""
    called = together(comm, lambda: require_writable(new))

    def write(advance: Callable[[int], None]) -> None:
        _as_mistake(new.out, lambda: write_images(new, called, comm.rank, comm.size, advance))

    together_meanwhile(comm, write)
    on_rank_0(comm, lambda: _as_mistake(new.out, lambda: finish(new, called, spec.root, extra)))


def _as_mistake(folder: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        fix = f"make room, remove {folder}, and start again"
        raise UserError(what, where=error.filename or folder, fix=fix) from error


def _as_it_was(
    spec: DataSpec, parts: Mapping[str, Sequence[Pick]], options: SplitOptions
) -> tuple[NewSet, dict[str, Any]]:
    """The new set in the format of the old one, as far as it can be; further keys of its ``data.yaml``."""
    packed = any(index_of(spec, split) for split in spec.splits)
    entries = {} if packed else _entries(spec)
    kinds = {type(unnumbered(entry.labels)) for entry in entries.values()}
    if kinds == {YoloLabels}:
        extra = {"kpt_shape": list(spec.rules.keypoints)} if spec.rules.keypoints else {}
        kind: Kind = "yolo" if options.copy else "images"
        labels = partial(_label_file, entries)
        return NewSet(kind, options.out, parts, spec.own_names, options.copy, labels), extra
    kind = "yolo" if packed else "list" if kinds == {ListLabels} else "coco"
    return NewSet(kind, options.out, parts, spec.names, options.copy), {}


def _entries(spec: DataSpec) -> dict[str, Entry]:
    """All entries of a set of loose files, by the place of the image."""
    found = (entry for split in spec.splits for entry in list_entries(spec, split))
    return {os.path.normpath(entry.image): entry for entry in found}


def _label_file(entries: Mapping[str, Entry], pick: Pick) -> bytes | None:
    try:
        return read_labels(entries[pick.place].labels.file)
    except FileNotFoundError:
        return None


def _say_unkept(spec: DataSpec, annotations: Mapping[str, Annotations], kind: Kind) -> None:
    """A line on what the labels have and the new files have not."""
    loose = [split for split in annotations if index_of(spec, split) is None]
    found: Counter[str] = Counter()
    for split in loose:
        found += beside_boxes(list_entries(spec, split))
    if kind != "coco":
        for of in annotations.values():
            found += lost_crowds(of)
    if found:
        what = "; ".join(f"{count} {name}" for name, count in sorted(found.items()))
        log.warning("not kept: %s", what)
