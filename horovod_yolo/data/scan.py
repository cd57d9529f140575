"""The scan: what is in the images and label files of a split.

It opens every file, so ranks divide the entries among themselves, and a rank has several threads. What is
found of an entry depends on its files and the class names alone. It goes from rank to rank, and into the
cache, as a `Table`: millions of objects would take longer to pack than to find.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Ints
from horovod_yolo.data.ahead import made_ahead
from horovod_yolo.data.annotations import object_columns
from horovod_yolo.data.formats import Entry, Labels, Problem
from horovod_yolo.data.listing import relative_name
from horovod_yolo.data.read import ImageError, MissingImageError, quiet, read_content, verify_content
from horovod_yolo.data.table import Table, places_of, ragged, ragged_row
from horovod_yolo.io.files import read_bytes

CONTENT_BYTES = 16
UNREAD = bytes(CONTENT_BYTES)  # in place of the content's hash where a file is missing or cannot be read
MAX_HASHED_BYTES = 4 << 30
_NO_LABELS = Labels(
    np.empty(0, np.int64), np.empty((0, 4), np.float32), np.empty(0, np.bool_), np.empty(0, np.float32)
)
OF_ENTRIES = ("usable", "height", "width", "image_content", "label_content", "problem_count")
_RAGGED = {"object_end": ("class_id", "box_xyxy", "crowd", "area"), "problem_end": ("problem",)}


@dataclass(frozen=True, eq=False)
class ScannedImage:
    """What the files of one entry hold."""

    height: int  # pixels, upright; 0: the image cannot be used
    width: int
    labels: Labels | None  # None: the image is left out
    problems: tuple[Problem, ...]
    image_content: bytes  # the first bytes of the file's SHA-256, or UNREAD
    label_content: bytes


def scan(entries: Sequence[Entry], names: Sequence[str]) -> Iterator[ScannedImage]:
    """Decode each image and read its labels, in the order of the entries, on several threads."""
    hashes = _Hashes()
    with quiet(), closing(made_ahead(lambda entry: scan_entry(entry, names, hashes), entries)) as scanned:
        yield from scanned


class _Hashes:
    """Content hashes of label files. The last one is remembered: COCO has one file for all images."""

    def __init__(self) -> None:
        self._last: tuple[Path | None, bytes] = (None, UNREAD)

    def of(self, file: Path) -> bytes:
        """Of a file; UNREAD where it cannot be read."""
        last, found = self._last
        if file != last:
            try:
                found = content_hash(read_bytes(file, MAX_HASHED_BYTES))
            except OSError:
                found = UNREAD
            self._last = (file, found)
        return found


def content_hash(content: bytes) -> bytes:
    """Names what is in a file."""
    return hashlib.sha256(content).digest()[:CONTENT_BYTES]


def scan_entry(entry: Entry, names: Sequence[str], hashes: _Hashes) -> ScannedImage:
    """Open the files of one entry."""
    labels_hash = hashes.of(entry.labels.file)
    image_hash, (height, width), problem = UNREAD, (0, 0), None
    try:
        content = read_content(entry.image)
        image_hash = content_hash(content)
        height, width = verify_content(entry.image, content)
    except MissingImageError:
        named_in = entry.named_in or str(entry.image)
        problem = Problem(named_in, entry.named_at, f"image {entry.image} does not exist")
    except ImageError as error:
        problem = Problem(str(entry.image), None, error.reason)
    if problem is not None:
        return ScannedImage(0, 0, None, (problem,), image_hash, labels_hash)
    labels, problems = entry.labels.read(names, height, width)
    return ScannedImage(height, width, labels, tuple(problems), image_hash, labels_hash)


def tabulate(scanned: Sequence[ScannedImage], root: Path) -> Table:
    """Columns of what was found, a row an entry."""
    return {
        "usable": np.array([image.labels is not None for image in scanned], np.bool_),
        "height": np.array([image.height for image in scanned], np.int32),
        "width": np.array([image.width for image in scanned], np.int32),
        "image_content": _hashes([image.image_content for image in scanned]),
        "label_content": _hashes([image.label_content for image in scanned]),
        **object_columns([image.labels or _NO_LABELS for image in scanned]),
        "problem_count": np.array([len(image.problems) for image in scanned], np.int32),
        **ragged("problem", [_packed(image.problems, root) for image in scanned]),
    }


def require_useful(table: Table, images: Sequence[Path], root: Path) -> None:
    """Refuse a scan from which nothing could be learnt or measured.

    Raises:
        UserError: no image is usable, or none has an object.
    """
    usable = np.flatnonzero(table["usable"])
    if not len(usable):
        raise UserError(
            f"none of {len(images)} images is usable",
            where=root,
            fix="see the problems reported for each of them",
        )
    if not len(table["class_id"]):
        first = relative_name(images[usable[0]], root)
        raise UserError(
            f"none of {len(usable)} images has a labelled object (the first is {first})",
            where=root,
            fix="labels of images/a/b.jpg belong in labels/a/b.txt; see also the problems reported",
        )


def problems_of(columns: Table, root: Path) -> Iterator[Problem]:
    """The problems of a table, in the order of the entries."""
    for i in np.flatnonzero(columns["problem_count"]).tolist():
        for file, *rest in json.loads(ragged_row(columns, "problem", i)):
            yield Problem(str(root / file), *rest)


def join(tables: Sequence[Table]) -> Table:
    """The rows of tables one after the other."""
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    for end in _RAGGED:
        shifts = np.cumsum([0, *(table[end][-1] if len(table[end]) else 0 for table in tables)])
        joined[end] = np.concatenate(
            [table[end] + shift for table, shift in zip(tables, shifts[:-1], strict=True)]
        )
    return joined


def take(table: Table, rows: Ints) -> Table:
    """Some rows of a table, in that order."""
    taken = {name: table[name][rows] for name in OF_ENTRIES}
    for end, columns in _RAGGED.items():
        taken[end], places = places_of(table[end], rows)
        taken |= {name: table[name][places] for name in columns}
    return taken


def _hashes(found: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, CONTENT_BYTES)


def _packed(problems: Sequence[Problem], root: Path) -> bytes:
    if not problems:
        return b""
    rows = [(relative_name(Path(p.file), root), p.line, p.reason, p.kind, p.about, p.count) for p in problems]
    return json.dumps(rows).encode()
