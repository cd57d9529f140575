"""What earlier scans found: whole annotations, and the pieces of a scan that was interrupted.

A row counts for as long as both files of its entry have the size, times, inode and device of when they were
read, and the scan follows the same rules. So two sets never share a row, a copy elsewhere is read once, and
after a change only what changed is read again.

The cache is a shortcut only. A damaged file is a miss, and a folder that cannot be written to costs time and
a warning: then the annotations are in memory. Files appear under their names complete or not at all, are
never changed, and stay readable for whoever has them open, so jobs may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Ints
from horovod_yolo.data.annotations import Annotations, about, image_columns
from horovod_yolo.data.listing import GONE, Survey, relative_name
from horovod_yolo.data.scan import OF_ENTRIES, join, take
from horovod_yolo.data.table import Table
from horovod_yolo.io.atomic import replacing
from horovod_yolo.io.columns import (
    ColumnFile,
    DamagedError,
    check_columns,
    columns_in_memory,
    open_columns,
    read_about,
    write_columns,
)
from horovod_yolo.io.places import is_local

FILES_KEPT = 64
BYTES_KEPT = 8 << 30
ROWS_AT_ONCE = 1 << 14  # are compared where the processor has them at hand
MOST_READ = 4  # whole files: each is read to its end before it counts
SECONDS_OF_A_PIECE = 7 * 24 * 3600.0  # that nobody went on with
SECONDS_OF_REMAINS = 24 * 3600.0  # of a killed writer

_log = logging.getLogger(__name__)
_STATES = ("image_state", "label_state")
_WHOLE, _PIECE = ".columns", ".piece"


@dataclass(frozen=True, eq=False)
class Known:
    """Rows that need no scan."""

    rows: NDArray[np.bool_]  # (entries,) which they are
    parts: list[tuple[Ints, Table]]  # positions among the entries, and their rows
    whole: ColumnFile | None = None  # a file that holds just these entries, all known

    def all_parts(self) -> list[tuple[Ints, Table]]:
        """The parts, also where they are a whole file."""
        if self.whole is None:
            return self.parts
        return [(np.arange(len(self.rows)), _rows_of(self.whole))]


class AnnotationCache:
    """A folder of files that are scans, whole or in pieces; None for no folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writable = folder is not None

    def find(self, survey: Survey, root: Path, split: str) -> Known:
        """What is known of the entries."""
        rows = np.zeros(len(survey.entries), np.bool_)
        parts: list[tuple[Ints, Table]] = []
        for path in self._candidates(survey, _place(root, split)):
            file = _opened(path)
            if file is None:
                continue
            positions, found = _aligned(file, survey, root)
            fresh = _same_states(file, found, survey, positions) & ~rows[positions]
            if fresh.all() and len(found) == len(rows) == len(file["usable"]) and path.suffix == _WHOLE:
                # Mapped anew: what was compared here is not to stay in the memory of training.
                return Known(np.ones_like(rows), [], open_columns(file.address, file.key))
            if fresh.any():
                rows[positions[fresh]] = True
                parts.append((positions[fresh], take(_rows_of(file), found[fresh])))
        return Known(rows, parts)

    def keep_piece(self, survey: Survey, positions: Ints, table: Table) -> None:
        """Save what a scan has found so far."""
        columns = {
            **table,
            "position": positions,
            "image_state": survey.image_states[positions],
            "label_state": survey.label_states[positions],
        }
        said = {"rules": survey.rules, "listing": survey.listing}
        self._write(_PIECE, said, columns)

    def keep(self, survey: Survey, root: Path, split: str, names: Sequence[str], table: Table) -> ColumnFile:
        """The annotations that a scan of all entries makes, in a file where that can be."""
        usable = table["usable"]
        chosen = [survey.entries[i] for i in np.flatnonzero(usable).tolist()]
        found = {
            **{name: table[name][usable] for name in ("height", "width", "object_end")},
            **{name: table[name] for name in ("class_id", "box_xyxy", "crowd", "area")},
        }
        paths = [relative_name(entry.image, root) for entry in chosen]
        of_images = image_columns(paths, [entry.image_id for entry in chosen], found)
        of_entries = {
            name: table[name] for name in (*OF_ENTRIES, "problem", "problem_end") if name not in of_images
        }
        states = {"image_state": survey.image_states, "label_state": survey.label_states}
        said = {
            **about(names, of_images),
            "content": content_of(survey, table),
            "rules": survey.rules,
            "listing": survey.listing,
            "place": _place(root, split),
        }
        columns = {**of_images, **of_entries, **states}
        file = self._write(_WHOLE, said, columns) or columns_in_memory(said, columns)
        self._tidy(survey)
        return file

    def _write(self, suffix: str, said: dict[str, Any], columns: Table) -> ColumnFile | None:
        """Write a file; None where the folder does not take it."""
        if self._folder is None or not self._writable:
            return None
        path = self._folder / f"{secrets.token_hex(16)}{suffix}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as stream:
                key = write_columns(stream, said, columns)
                stream.flush()
                file = open_columns(f"/proc/self/fd/{stream.fileno()}", key)
        except OSError as error:
            self._writable = False
            words = "the annotations are kept in memory, and the next start scans again"
            _log.warning("%s takes no more (%s): %s", self._folder, error.strerror or error, words)
            return None
        return file

    def _candidates(self, survey: Survey, place: str) -> list[Path]:
        """Files that may know something: the likeliest first, then the newest."""
        found = []
        for path in self._files():
            try:
                said = read_about(path)
                if said["rules"] == survey.rules:
                    same = said["listing"] == survey.listing
                    likely = 2 * same + (said.get("place") == place)
                    if likely and (same or path.suffix == _WHOLE):
                        found.append((likely, _used(path), path))
            except (OSError, DamagedError, KeyError) as error:
                _log.warning("cached annotations %s are unusable (%s)", path, error)
        ordered = [path for *_, path in sorted(found, reverse=True)]
        whole = [path for path in ordered if path.suffix == _WHOLE][:MOST_READ]
        return whole + [path for path in ordered if path.suffix == _PIECE]

    def _files(self) -> list[Path]:
        if self._folder is None:
            return []
        try:
            return sorted(path for path in self._folder.iterdir() if path.suffix in (_WHOLE, _PIECE))
        except OSError:
            return []

    def _tidy(self, survey: Survey) -> None:
        """Remove the pieces of a scan that is whole now, what was not used for longest, and remains."""
        now, size = time.time(), 0
        pieces = [path for path in self._files() if path.suffix == _PIECE]
        wholes = sorted(
            ((_used(path), path) for path in self._files() if path.suffix == _WHOLE), reverse=True
        )
        gone = [path for path in pieces if _listing_of(path) == survey.listing]
        gone += [path for path in pieces if _used(path) < now - SECONDS_OF_A_PIECE]
        for i, (_, path) in enumerate(wholes):
            size += _size(path)
            if i >= FILES_KEPT or (i and size > BYTES_KEPT):
                gone.append(path)
        if self._folder is not None:
            gone += [path for path in self._folder.glob(".*.tmp") if _used(path) < now - SECONDS_OF_REMAINS]
        for path in gone:
            with contextlib.suppress(OSError):  # a folder that may only be read
                path.unlink(missing_ok=True)


def content_of(survey: Survey, table: Table) -> str:
    """Hash of what is in all files of a split: equal for copies of a data set."""
    total = hashlib.sha256(survey.listing.encode())
    total.update(np.ascontiguousarray(table["image_content"]).data)
    total.update(np.ascontiguousarray(table["label_content"]).data)
    return total.hexdigest()


def in_order(parts: Sequence[tuple[Ints, Table]], count: int) -> Table:
    """The rows of all entries in their order. A later part counts where two have the same entry."""
    rows = np.full(count, -1, np.int64)
    joined = join([table for _, table in parts])
    positions = np.concatenate([positions for positions, _ in parts])
    rows[positions] = np.arange(len(positions))
    assert (rows >= 0).all(), "every entry is known or was scanned"
    return take(joined, rows)


def _opened(path: Path) -> ColumnFile | None:
    """A whole file; mapped in place only where nobody can cut it meanwhile. None where it is damaged."""
    try:
        ours = path.lstat().st_uid == os.geteuid()
        file = check_columns(path, in_place=ours and is_local(path))
    except FileNotFoundError:  # another job has tidied up
        return None
    except (OSError, DamagedError) as error:
        _log.warning("cached annotations %s are unusable (%s): their files are read again", path, error)
        return None
    with contextlib.suppress(OSError):  # a folder that may only be read
        os.utime(path)  # used now: the last to be removed
    return file


def _aligned(file: ColumnFile, survey: Survey, root: Path) -> tuple[Ints, Ints]:
    """Positions among the entries, and the rows of a file that are about the same images."""
    if "position" in file:
        return file["position"], np.arange(len(file["position"]))
    if file.about["listing"] == survey.listing:
        both = np.arange(len(survey.entries))
        return both, both
    known = Annotations(root, file)
    row_of = {known.path(i): row for i, row in enumerate(np.flatnonzero(file["usable"]).tolist())}
    names = [relative_name(entry.image, root) for entry in survey.entries]
    pairs = [(position, row_of[name]) for position, name in enumerate(names) if name in row_of]
    positions, rows = np.array(pairs, np.int64).reshape(-1, 2).T
    return positions, rows


def _same_states(file: ColumnFile, rows: Ints, survey: Survey, positions: Ints) -> NDArray[np.bool_]:
    """Which rows are of files that are as they were, and could be read, (rows,)."""
    same = np.empty(len(rows), np.bool_)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        same[some] = _same_rows(file, rows[some], survey, positions[some])
    return same


def _same_rows(file: ColumnFile, rows: Ints, survey: Survey, positions: Ints) -> NDArray[np.bool_]:
    same = np.ones(len(rows), np.bool_)
    for state, content, now in (
        ("image_state", "image_content", survey.image_states[positions]),
        ("label_state", "label_content", survey.label_states[positions]),
    ):
        was_read = file[content][rows].any(1) | (now[:, 0] == GONE)
        same &= (file[state][rows] == now).all(1) & was_read
    return same


def _rows_of(file: ColumnFile) -> Table:
    """The rows of a file as the scan gave them; sizes of images that were left out are not kept."""
    columns = file.columns
    if "position" in file:
        return columns
    usable, sizes = file["usable"], {}
    for name in ("height", "width"):
        sizes[name] = np.zeros(len(usable), np.int32)
        sizes[name][usable] = file[name]
    counts = np.zeros(len(usable), np.int64)
    counts[usable] = np.diff(file["object_end"], prepend=0)
    return {**columns, **sizes, "object_end": np.cumsum(counts)}


def _place(root: Path, split: str) -> str:
    return hashlib.sha256(os.fsencode(f"{split}\0{root.resolve()}")).hexdigest()


def _listing_of(path: Path) -> str:
    try:
        return str(read_about(path).get("listing"))
    except (OSError, DamagedError):
        return ""


def _used(path: Path) -> float:
    """Seconds since 1970; now where another job has removed the file meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
