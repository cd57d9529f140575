"""Packing: what a pack's shards hold, and the writing of one.

Which image is in which shard follows from the images' sizes alone, and no byte of a shard from who writes it,
so ranks share the work without a word. A shard counts as whole when the piece of the index beside it is
there, which is written after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Ints
from horovod_yolo.data.annotations import Annotations, about, image_columns
from horovod_yolo.data.formats import Entry, UnreadableError, read_labels
from horovod_yolo.data.formats.label_files import label_path
from horovod_yolo.data.formats.yolo import YoloLabels
from horovod_yolo.data.pack import SUFFIX, VERSION
from horovod_yolo.data.read import ImageError, read_content
from horovod_yolo.data.scan import UNREAD, content_hash
from horovod_yolo.data.shards import mark, shard_name
from horovod_yolo.data.spec import DataSpec
from horovod_yolo.data.table import Table
from horovod_yolo.data.writers import yolo_rows
from horovod_yolo.io.atomic import replacing
from horovod_yolo.io.columns import ColumnFile, DamagedError, check_columns, write_columns

UNPACKED = "unpacked.yaml"  # in the first shard: a data.yaml of the loose files, which lists name
LIST = "unpacked-{}.txt"
PIECE = ".piece"
_BLOCK, _RECORD = 512, 10240  # of tar
_AGAIN = "start the packing again: it goes on with what is whole"
_OF_IMAGES = ("height", "width", "object_end", "class_id", "box_xyxy", "crowd", "area")


@dataclass(frozen=True, eq=False)
class Plan:
    """What goes where, the same on all ranks.

    Attributes:
        split: its name.
        key: names the content and the way it is divided.
        annotations: of the split's usable images.
        entries: of these images.
        names: of them in the tar files.
        label_names: likewise; empty where another image of that label file's name comes first.
        rows: (images,) of the scan's entries.
        sizes: (images,) bytes.
        starts: (shards + 1,) the first image of each shard, and the number of images.
        front: files at the beginning of the first shard.
    """

    split: str
    key: str
    annotations: Annotations
    entries: Sequence[Entry]
    names: Sequence[str]
    label_names: Sequence[str]
    rows: Ints
    sizes: Ints
    starts: Ints
    front: Mapping[str, bytes]

    def __len__(self) -> int:
        """How many shards there are."""
        return len(self.starts) - 1

    def images(self, shard: int) -> range:
        """The images of a shard."""
        return range(int(self.starts[shard]), int(self.starts[shard + 1]))


def names_in_tar(annotations: Mapping[str, Annotations]) -> dict[str, list[str]]:
    """What the images of all splits are called in the shards: as below the data set's root.

    Where an image lies outside of it, all are named from the folder that they have in common, or from the one
    above where that is called ``images``: labels are found beside it.

    Raises:
        UserError: a name has a line end, or two images would have one.
    """
    paths = {split: [of.path(i) for i in range(len(of))] for split, of in annotations.items()}
    inside = all(not Path(path).is_absolute() and ".." not in Path(path).parts for path in _all(paths))
    if not inside:
        root = next(iter(annotations.values())).root
        whole = {split: [os.path.normpath(root / path) for path in some] for split, some in paths.items()}
        base = Path(os.path.commonpath([Path(path).parent for path in _all(whole)]))
        while "images" in base.parts:
            base = base.parent
        paths = {split: [os.path.relpath(path, base) for path in some] for split, some in whole.items()}
    for split, some in paths.items():
        count, root = Counter(some), annotations[split].root
        for name in some:
            if count[name] > 1:
                raise UserError(f"two images would be called {name}", where=root, fix="rename one of them")
            if name.splitlines() != [name]:
                what = f"the image {name!r} has a line end in its name"
                raise UserError(what, where=root, fix="rename it: no list of images could name it")
    return paths


def _all(paths: Mapping[str, Sequence[str]]) -> list[str]:
    return [path for some in paths.values() for path in some]


def make_plan(
    spec: DataSpec,
    split: str,
    annotations: Annotations,
    entries: Sequence[Entry],
    names: Sequence[str],
    limit: int,
) -> Plan:
    """Divide a split's images into shards of at most ``limit`` bytes of images.

    Args:
        spec: of the data set.
        split: its name.
        annotations: as a scan of loose files gave them.
        entries: all of the split.
        names: of the usable images in the tar files.
        limit: bytes.

    Raises:
        UserError: the files are no longer those that were scanned, an image is larger than a shard, or label
            files would have one name.
    """
    file = annotations.file
    rows = np.flatnonzero(file["usable"])
    same = len(entries) == len(file["usable"])
    chosen = [entries[row] for row in rows.tolist()] if same else []
    if not same or any(entry.image != annotations.image_path(i) for i, entry in enumerate(chosen)):
        raise UserError(f"the {split} images have changed since their scan", where=spec.file, fix=_AGAIN)
    sizes = file["image_state"][rows][:, 0].astype(np.int64)
    if sizes.max() > limit:
        i = int(sizes.argmax())
        what = f"{annotations.image_path(i)} has {sizes[i]} bytes, more than a shard of {limit}"
        raise UserError(what, where="--shard", fix=f"give {-(-int(sizes[i]) // 1_000_000)}MB or more")
    starts = _starts(sizes, limit)
    loose = data_yaml(spec, {each: LIST.format(each) for each in spec.splits})
    said = [VERSION, split, file.about["content"], annotations.digest, loose.decode(), starts.tolist()]
    front = {LIST.format(split): b"".join(os.fsencode(f"./{name}\n") for name in names)}
    return Plan(
        split=split,
        key=hashlib.sha256(json.dumps(said).encode()).hexdigest(),
        annotations=annotations,
        entries=chosen,
        names=names,
        label_names=_label_names(names, chosen, annotations),
        rows=rows,
        sizes=sizes,
        starts=starts,
        front=front | ({UNPACKED: loose} if split == "train" else {}),
    )


def data_yaml(spec: DataSpec, items: Mapping[str, str]) -> bytes:
    """A data.yaml with other items."""
    content: dict[str, Any] = {**items, "names": list(spec.own_names)}
    if spec.rules.keypoints:
        content["kpt_shape"] = list(spec.rules.keypoints)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _starts(sizes: Ints, limit: int) -> Ints:
    starts, filled = [0], 0
    for i, size in enumerate(sizes.tolist()):
        if filled + size > limit:
            starts.append(i)
            filled = 0
        filled += size
    return np.array([*starts, len(sizes)], np.int64)


def _label_names(names: Sequence[str], entries: Sequence[Entry], annotations: Annotations) -> list[str]:
    """Of YOLO sets, images of one name but for its end share a file; of others they must not."""
    first: dict[str, int] = {}
    found, counts = [], annotations.counts
    for i, name in enumerate(names):
        label = label_path(Path(name)).as_posix()
        j = first.setdefault(label, i)
        found.append(label if i == j else "")
        files = [entries[k].labels.file for k in (i, j) if isinstance(entries[k].labels, YoloLabels)]
        if i != j and (counts[i] or counts[j]) and (len(files) < 2 or files[0] != files[1]):
            what = f"{names[j]} and {name} would share the label file {label}"
            raise UserError(what, where=annotations.root, fix="rename one of them")
    return found


def piece_of(plan: Plan, shard: int, folder: Path) -> ColumnFile | None:
    """The piece of the index beside a shard that is whole; None where there is none."""
    path = folder / shard_name(plan.split, shard)
    try:
        file = check_columns(path.with_name(path.name + PIECE), in_place=False)
        with path.open("rb") as stream:
            start = mark(plan.key, shard)
            begins = stream.read(len(start)) == start
            whole = os.fstat(stream.fileno()).st_size == int(file["shard_bytes"][0])
    except (OSError, DamagedError):
        return None
    return file if begins and whole and file.about == {"key": plan.key, "shard": shard} else None


def write_shard(plan: Plan, shard: int, folder: Path, advance: Callable[[int], None]) -> None:
    """Write a shard and its piece of the index.

    Args:
        plan: of the pack.
        shard: its number.
        folder: of the pack.
        advance: told of the bytes of each image.

    Raises:
        UserError: a file is lost or has changed since the scan.
        OSError: the disk is full, for one.
    """
    path = folder / shard_name(plan.split, shard)
    offsets, lengths, sums = [], [], []
    with replacing(path) as stream:
        tar = _Tar(stream)
        tar.write(mark(plan.key, shard))
        for name, content in plan.front.items() if shard == 0 else ():
            tar.add(name, content)
        for i in plan.images(shard):
            content = _image(plan, i)
            offsets.append(tar.add(plan.names[i], content))
            lengths.append(len(content))
            sums.append(zlib.crc32(content))
            if plan.label_names[i] and (labels := _labels(plan, i)) is not None:
                tar.add(plan.label_names[i], labels)
            advance(len(content))
        tar.end()
    columns: Table = {
        "offset": np.array(offsets, np.int64),
        "length": np.array(lengths, np.int64),
        "crc32": np.array(sums, np.uint32),
        "shard_bytes": np.array([tar.size], np.int64),
        "shard_sha256": np.frombuffer(tar.total.digest(), np.uint8).reshape(1, -1),
    }
    with replacing(path.with_name(path.name + PIECE)) as stream:
        write_columns(stream, {"key": plan.key, "shard": shard}, columns)


def write_index(plan: Plan, pieces: Sequence[ColumnFile], folder: Path) -> None:
    """Write the index of a split all of whose shards are whole.

    Raises:
        OSError: the disk is full, for one.
    """
    known, file, rows = plan.annotations, plan.annotations.file, plan.rows
    ids = [known.image_id(i) for i in range(len(known))]
    of_images = image_columns(plan.names, ids, {name: file[name] for name in _OF_IMAGES})
    places: Table = {
        "shard": np.repeat(np.arange(len(plan), dtype=np.uint32), np.diff(plan.starts)),
        **{name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0].columns},
        "image_content": file["image_content"][rows],
        "label_content": file["label_content"][rows],
        "usable": np.ones(len(known), np.bool_),
        "problem_count": np.zeros(len(known), np.int32),  # they were said when it was packed
    }
    said = {
        **about(known.names, of_images),
        "pack": {"version": VERSION, "key": plan.key, "split": plan.split},
    }
    with replacing(folder / f"{plan.split}{SUFFIX}") as stream:
        write_columns(stream, said, {**of_images, **places})


class _Tar:
    """A tar file that says where what is added begins. All of it follows from names and contents."""

    def __init__(self, stream: BinaryIO) -> None:
        self.size = 0
        self.total = hashlib.sha256()
        self._stream = stream

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self.total.update(data)
        self.size += len(data)

    def add(self, name: str, content: bytes) -> int:
        """Add a file; the place of its first byte."""
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self.write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        place = self.size
        self.write(content)
        self.write(bytes(-len(content) % _BLOCK))
        return place

    def end(self) -> None:
        ends = self.size + 2 * _BLOCK
        self.write(bytes(2 * _BLOCK + -ends % _RECORD))


def _image(plan: Plan, i: int) -> bytes:
    entry = plan.entries[i]
    try:
        content = read_content(entry.image)
    except ImageError as error:
        raise UserError(f"{error.reason}, and was there in the scan", where=error.path, fix=_AGAIN) from error
    if content_hash(content) != plan.annotations.file["image_content"][plan.rows[i]].tobytes():
        raise UserError("the image has changed since its scan", where=entry.image, fix=_AGAIN)
    return content


def _labels(plan: Plan, i: int) -> bytes | None:
    """An image's label file: as it is where it is YOLO's, else made from the annotations."""
    source = plan.entries[i].labels
    if not isinstance(source, YoloLabels):
        return yolo_rows(plan.annotations.record(i))
    try:
        content: bytes | None = read_labels(source.file)
    except FileNotFoundError:
        content = None
    except UnreadableError as error:
        raise UserError(str(error.problem), fix=_AGAIN) from error
    found = UNREAD if content is None else content_hash(content)
    if found != plan.annotations.file["label_content"][plan.rows[i]].tobytes():
        raise UserError("the labels have changed since their scan", where=source.file, fix=_AGAIN)
    return content
