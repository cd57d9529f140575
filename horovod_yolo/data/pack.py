"""Packs: a split in a few large tar files (`shards.py`) and an index, the columns that training reads.

The index holds the annotations, as a scan of the loose files gave them, and where in the shards each image
is. It is written when all shards are whole. Nothing is scanned again: labels in the shards are for other
programs.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from horovod_yolo.core.class_names import listed
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import FORMAT_VERSION, Annotations, about
from horovod_yolo.data.contents import marks
from horovod_yolo.data.formats import Problem, other_classes
from horovod_yolo.data.listing import THREADS
from horovod_yolo.data.read import ImageError, read_content
from horovod_yolo.data.scan import require_useful
from horovod_yolo.data.shards import ImageFile, Shards, mark
from horovod_yolo.data.spec import DataSpec
from horovod_yolo.io.columns import (
    ColumnFile,
    DamagedError,
    check_columns,
    check_descriptor,
    columns_in_memory,
)
from horovod_yolo.io.places import is_local
from horovod_yolo.io.remote import RemoteFolder, shown, url_of

VERSION = 1  # of shards and index
SUFFIX = ".columns"
ANEW = "copy the pack again, or make it anew with 'horovod-yolo data pack'"
_BYTES_AT_ONCE = 4 << 20
_OF_OBJECTS = ("class_id", "box_xyxy", "crowd", "area")


def index_of(spec: DataSpec, split: str) -> Path | None:
    """The index of a split that is packed; None where it is not.

    Raises:
        UserError: the index is one of several items, or lies elsewhere than the shards.
    """
    items = spec.items(split)
    packed = [item for item in items if item.endswith(SUFFIX)]
    where = f"{spec.file}, {split}"
    remote = url_of(spec.root)
    if not packed:
        if remote:
            what = f"{remote} must hold a pack, and {listed(items)} is no index of one"
            raise UserError(what, where=where, fix="pack the data, copy the pack there, and name its index")
        return None
    if len(items) > 1:
        raise UserError(f"{packed[0]} is one of {len(items)} items", where=where, fix="name it alone")
    path = spec.root / packed[0]
    if remote:
        inside = path.parent == spec.root
    else:
        inside = os.path.realpath(path.parent) == os.path.realpath(spec.root)
    if not inside:
        fix = f"set path to {path.parent}, where the shards are"
        raise UserError(f"{packed[0]} is in another folder than {spec.root}", where=where, fix=fix)
    return path


def open_index(path: Path) -> ColumnFile:
    """An index, read and compared with its checksum.

    Raises:
        UserError: it is missing, damaged, no index, or of another version.
    """
    try:
        file = _checked(path)
    except (OSError, DamagedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the index of a pack cannot be read: {reason}", where=shown(path), fix=ANEW
        ) from error
    pack = file.about.get("pack")
    if pack is None or (pack["version"], file.about["version"]) != (VERSION, FORMAT_VERSION):
        reason = "no index of a pack" if pack is None else "written by another version of horovod-yolo"
        raise UserError(reason, where=shown(path), fix="make the pack anew with 'horovod-yolo data pack'")
    return file


def _checked(path: Path) -> ColumnFile:
    remote = RemoteFolder.at(path.parent)
    if remote is None:
        ours = path.stat().st_uid == os.geteuid()
        # A copy in memory where somebody could cut the file while it is mapped.
        return check_columns(path.resolve(), in_place=ours and is_local(path))
    remote.read(path.name, 0, 1)  # of a small file this shows whether there are ranges
    size = remote.size(path.name)
    copy = os.memfd_create("columns")
    with os.fdopen(copy, "wb", closefd=False) as target:
        for start in range(0, size, _BYTES_AT_ONCE):
            target.write(remote.read(path.name, start, min(_BYTES_AT_ONCE, size - start)))
    return check_descriptor(copy)


def require_shards(file: ColumnFile, folder: Path, advance: Callable[[int], None]) -> None:
    """Look whether all shards are there, as long as they were, and of this pack; what is in them is not read.

    Raises:
        UserError: one is not.
    """
    shards, sizes = Shards(folder, file.about["pack"]), file["shard_bytes"].tolist()

    def problem(k: int) -> str:
        try:
            start = mark(shards.key, k)
            found, size = shards.beginning(k, len(start))
        except OSError as error:
            return f"a shard cannot be read: {error.strerror or error}"
        advance(1)
        if size != sizes[k]:
            return f"the shard has {size} bytes, not the {sizes[k]} that were written"
        return "" if found == start else "the shard is of another pack than the index"

    with ThreadPoolExecutor(THREADS) as threads:
        for k, reason in enumerate(threads.map(problem, range(len(sizes)))):
            if reason:
                raise UserError(reason, where=shown(shards.path(k)), fix=ANEW)


def as_asked(file: ColumnFile, spec: DataSpec, split: str) -> tuple[ColumnFile, list[Problem]]:
    """The index with the classes that the data set is read for, and what is left out for it.

    Raises:
        UserError: ``names`` are more or fewer than were packed, or no object is left.
    """
    packed = len(file.about["names"])
    if len(spec.own_names) != packed:
        what = f"names has {len(spec.own_names)} classes, and {split} was packed with {packed}"
        raise UserError(what, where=spec.file, fix="name the classes as they were")
    ids, problems = file["class_id"].astype(np.int64), []
    kept = np.ones(len(ids), np.bool_)
    for numbering in (spec.mapped, spec.numbered):
        if numbering is None:
            continue
        new = np.array([-1 if found is None else found for found in numbering.ids], np.int64)
        lost = Counter(numbering.names[number] for number in ids[kept & (new[ids] < 0)].tolist())
        problems += other_classes(str(spec.file), lost)
        kept &= new[ids] >= 0
        ids = np.where(kept, new[ids], 0)
    if (spec.mapped, spec.numbered) == (None, None) and tuple(file.about["names"]) == spec.names:
        return file, []
    columns = file.columns
    before = np.concatenate(([0], np.cumsum(kept)))
    columns |= {name: columns[name][kept] for name in _OF_OBJECTS}
    columns |= {"class_id": ids[kept].astype(np.int32), "object_end": before[columns["object_end"]]}
    known = Annotations(spec.root, file)
    sizes = np.column_stack((known.heights, known.widths)).astype(np.int64)
    objects = (columns[name] for name in ("object_end", "class_id", "box_xyxy"))
    columns["mark"] = marks((known.path(i) for i in range(len(known))), sizes, *objects)
    require_useful(columns, [known.image_path(0)], spec.root)
    return columns_in_memory({**file.about, **about(spec.names, columns)}, columns), problems


def damage(annotations: Annotations, k: int, advance: Callable[[int], None]) -> str:
    """What is wrong with a shard, all of which is read; empty: nothing."""
    file, shards = annotations.file, Shards(annotations.root, annotations.file.about["pack"])
    path, total, size = shown(shards.path(k)), hashlib.sha256(), int(file["shard_bytes"][k])
    try:
        for start in range(0, size, _BYTES_AT_ONCE):
            piece = shards.read(k, start, min(_BYTES_AT_ONCE, size - start))
            total.update(piece)
            advance(len(piece))
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror or error}"
    if total.digest() == file["shard_sha256"][k].tobytes():
        return ""
    images = np.flatnonzero(file["shard"] == k).tolist()
    bad = [i for i in images if not _is_whole(annotations.image_file(i))]
    first = f", such as {annotations.path(bad[0])}" if bad else ""
    return (
        f"{path}: it is not what was written, and {len(bad)} of its {len(images)} images are damaged{first}"
    )


def _is_whole(file: ImageFile) -> bool:
    try:
        read_content(file)
    except ImageError:
        return False
    return True
