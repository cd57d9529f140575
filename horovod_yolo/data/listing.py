"""Listing: which images a split has and where their labels are, before any of them is opened.

``list_entries`` is cheap and gives the same list on every rank. ``survey`` adds what the file system says of
each file, which tells whether an earlier scan still holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.class_names import listed, loose
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import FORMAT_VERSION
from horovod_yolo.data.formats import Entry, Folders, LabelSource, Problem, annotated, coco, voc, yolo
from horovod_yolo.data.formats.numbered import NumberedLabels
from horovod_yolo.data.read import IMAGE_SUFFIXES
from horovod_yolo.data.spec import DataSpec

__all__ = ["Entry", "Problem", "States", "Survey", "list_entries", "listing_of", "relative_name", "survey"]

States = NDArray[
    np.uint64
]  # (files, 5): size, mtime_ns, ctime_ns, inode, device; all GONE where there is none

GONE = (1 << 64) - 1
THREADS = 16  # a network file system takes as long for many questions at once as for one
ENTRIES_AT_ONCE = 256
SECONDS_OF_A_QUICK_PART = 0.02  # for so many entries: two questions each, answered from memory
PARTS_AT_ONCE = 8 * THREADS
ENTRIES_OF_A_RUN = 100_000  # are sorted within a tenth of a second


def list_entries(spec: DataSpec, split: str) -> list[Entry]:
    """The images of a split ("train", "val" or "test") and where their labels are, sorted by path.

    An item of the split is a folder of images, a list file (``.txt``), with boxes or without, a VOC list
    below ``ImageSets``, or a COCO ``.json``. No image is opened. An image named twice is taken once and
    reported by ``scan``.

    Raises:
        UserError: the split, a folder or a file is missing, or there is no image.
    """
    items = spec.items(split)
    if not items:
        raise UserError(f"has no '{split}'", where=spec.file, fix=f"add '{split}: images/{split}'")
    found, problems = _list_items(items, spec, split)
    entries, repeated = _drop_repeated(_sorted(found, spec.root))
    found.clear()  # or the last to have them would free them all at once, and hold up all threads
    problems += repeated
    if not entries:
        hint = f"; {problems[0]}" if problems else ""
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(
            f"no image in {', '.join(items)}{hint}",
            where=f"{spec.file}, {split}",
            fix=f"images end in {suffixes}",
        )
    _number(entries, spec)
    entries[0] = dataclasses.replace(entries[0], problems=tuple(problems))
    return entries


def require_mapped(spec: DataSpec, others: Sequence[str] = ()) -> None:
    """Raise where all labels are numbers, and ``--class-map`` speaks of a name that none of them has.

    In files that hold names of their own it may be any; what is read there says which it has not met.

    Args:
        spec: of the data set.
        others: names that it may speak of too: of the classes that weights know.

    Raises:
        UserError: it shows both lists.
    """
    known = {loose(name) for name in (*spec.own_names, *others)}
    unknown = [old for old, _ in spec.rules.class_map if loose(old) not in known]
    places = [_resolve(item, spec) for item in (*spec.train, *spec.val, *spec.test)]
    if unknown and all(place.suffix.lower() != ".json" and not voc.is_image_set(place) for place in places):
        weights = f", none of the weights' {listed(others)}" if others else ""
        raise UserError(
            f"--class-map has {listed(unknown)}: none of the names {listed(spec.own_names)}, which labels "
            f"are numbered by{weights}",
            where=spec.file,
            fix="write OLD=NEW with an OLD that is there",
        )


@dataclass(frozen=True, eq=False)
class Survey:
    """A split as the file system shows it."""

    entries: list[Entry]
    rules: str  # hash of what the result of a scan depends on beside files
    listing: str  # hash of the names, ids and label files of the entries: equal for copies of a data set
    image_states: States
    label_states: States

    @property
    def sizes(self) -> str:
        """Hash of names and sizes: equal for copies of a data set on several hosts."""
        return _hash_of(self.listing, self.image_states[:, 0], self.label_states[:, 0])

    @property
    def copy(self) -> str:
        """Names one copy of a data set, also where hosts have mounted it under different numbers."""
        return _hash_of(self.listing, self.image_states[:, :4], self.label_states[:, :4])


def survey(
    entries: list[Entry], spec: DataSpec, split: str, advance: Callable[[int], None] = lambda _: None
) -> Survey:
    """Look at the size, times and place of images and label files. Each file is looked at once.

    Args:
        entries: of the split.
        spec: of the data set.
        split: its name.
        advance: told of each lot of entries.
    """
    parts = [entries[i : i + ENTRIES_AT_ONCE] for i in range(0, len(entries), ENTRIES_AT_ONCE)]
    found = np.empty((2, len(entries), 5), np.uint64)
    for i, states in enumerate(_states_of(parts)):
        found[:, i * ENTRIES_AT_ONCE : i * ENTRIES_AT_ONCE + len(states)] = states.swapaxes(0, 1)
        advance(len(states))
    return Survey(entries, rules_of(spec), listing_of(entries, spec, split), found[0], found[1])


def listing_of(entries: Sequence[Entry], spec: DataSpec, split: str) -> str:
    """Hash of the names, ids and label files of entries: equal for copies of a data set."""
    total = hashlib.sha256(canonical(split))
    for entry in entries:
        total.update(canonical(*_identity(entry, spec.root)))
    return total.hexdigest()


def rules_of(spec: DataSpec) -> str:
    """Hash of what the result of a scan depends on beside the files."""
    numbered = spec.numbered and dataclasses.astuple(spec.numbered)
    return hashlib.sha256(
        canonical(FORMAT_VERSION, spec.names, dataclasses.astuple(spec.rules), numbered)
    ).hexdigest()


def _identity(entry: Entry, root: Path) -> tuple[object, ...]:
    named_in = entry.named_in and relative_name(Path(entry.named_in), root)
    labels = relative_name(entry.labels.file, root)
    return relative_name(entry.image, root), labels, entry.image_id, named_in, entry.named_at


def _states_of(parts: Sequence[Sequence[Entry]]) -> Iterator[States]:
    """Of each part. Threads help where a disk or a network is waited for, else they hinder each other."""
    done = 0
    with ThreadPoolExecutor(THREADS) as threads:
        while done < len(parts):
            begun = time.perf_counter()
            states = _states(parts[done])
            seconds = time.perf_counter() - begun
            yield states
            done += 1
            if seconds > SECONDS_OF_A_QUICK_PART:
                yield from threads.map(_states, parts[done : done + PARTS_AT_ONCE])
                done += PARTS_AT_ONCE


def _states(entries: Sequence[Entry]) -> NDArray[np.uint64]:
    """(entries, 2, 5): of images and label files."""
    known: dict[Path, tuple[int, ...]] = {}  # COCO has one label file for all
    rows = [(_state(entry.image, known), _state(entry.labels.file, known)) for entry in entries]
    return np.array(rows, np.uint64)


def _state(file: Path, known: dict[Path, tuple[int, ...]]) -> tuple[int, ...]:
    if file not in known:
        try:
            found = file.stat()
        except (OSError, ValueError):
            known[file] = (GONE,) * 5
        else:
            values = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
            known[file] = tuple(value & GONE for value in values)
    return known[file]


def _hash_of(start: str, *columns: States) -> str:
    total = hashlib.sha256(start.encode())
    for column in columns:
        total.update(np.ascontiguousarray(column).data)
    return total.hexdigest()


def canonical(*values: object) -> bytes:
    """Values as bytes; equal bytes mean equal values."""
    return json.dumps(values).encode() + b"\n"


def relative_name(path: Path, root: Path) -> str:
    """The posix path below root, or the whole path when it is not below."""
    folder = root.as_posix().removesuffix("/") + "/"  # text: ``Path.relative_to`` would take most of a start
    return path.as_posix().removeprefix(folder)


def _resolve(item: str, spec: DataSpec) -> Path:
    path = spec.root / item
    if not path.exists() and item.startswith("../") and (spec.root / item[3:]).exists():
        return spec.root / item[3:]  # Roboflow's files say "../train/images" for the folder beside the file
    return path


def _list_items(items: Sequence[str], spec: DataSpec, split: str) -> tuple[list[Entry], list[Problem]]:
    folders = Folders()
    entries: list[Entry] = []
    problems: list[Problem] = []
    for item in items:
        try:
            found, bad = _list_item(_resolve(item, spec), spec, split, folders)
        except OSError as error:  # no permission, a name too long, a share that is gone
            reason = error.strerror or str(error)
            fix = f"correct 'path' or '{split}', or make it readable"
            raise UserError(f"{item:.200} cannot be read: {reason}", where=spec.file, fix=fix) from error
        entries += found
        problems += bad
    return entries, [*dict.fromkeys(problems)]  # folders side by side may have one fault above them


def _list_item(path: Path, spec: DataSpec, split: str, folders: Folders) -> tuple[list[Entry], list[Problem]]:
    where = f"{spec.file}, {split}"
    if path.is_dir():
        return yolo.list_folder(path, spec.root, folders, spec.own_names, spec.rules)
    if not path.is_file():
        fix = f"relative paths start at {spec.root}; correct 'path' or '{split}'"
        raise UserError(f"there is no folder or file {path}", where=where, fix=fix)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return coco.list_file(path, spec.root, split, spec.own_names, folders, spec.rules)
    if suffix != ".txt":
        fix = "give a folder of images, a .txt list, a VOC ImageSets list or a COCO .json"
        raise UserError(f"{path} is none of the known kinds", where=where, fix=fix)
    if voc.is_image_set(path):
        return voc.list_file(path, folders, spec.rules)
    if not spec.rules.first_release and annotated.is_annotated(path):
        return annotated.list_file(path, spec.root, folders, spec.rules)
    return yolo.list_file(path, spec.root, folders, spec.own_names, spec.rules)


def _sorted(entries: Sequence[Entry], root: Path) -> list[Entry]:
    """By path; in runs, because a sort of millions holds up all other threads."""

    def path(entry: Entry) -> str:
        return relative_name(entry.image, root)

    starts = range(0, len(entries), ENTRIES_OF_A_RUN)
    runs = [sorted(entries[start : start + ENTRIES_OF_A_RUN], key=path) for start in starts]
    return list(heapq.merge(*runs, key=path))


def _drop_repeated(entries: Sequence[Entry]) -> tuple[list[Entry], list[Problem]]:
    unique: dict[str, Entry] = {}
    problems: list[Problem] = []
    for entry in entries:
        first = unique.setdefault(str(entry.image), entry)
        if first is not entry:
            named_in, named_at = entry.named_in or str(entry.image), entry.named_at
            problems.append(
                Problem(named_in, named_at, f"image {entry.image} is named more than once: taken once")
            )
    return list(unique.values()), problems


def _number(entries: list[Entry], spec: DataSpec) -> None:
    """Give each entry its id, and its labels the data set's numbering.

    Ids are COCO's where every entry has its own, else positions (two COCO files may both start at 0).
    """
    stated = [entry.image_id for entry in entries if isinstance(entry.labels, coco.CocoLabels)]
    has_own = len(set(stated)) == len(entries)
    for i, entry in enumerate(entries):
        labels: LabelSource = entry.labels
        if spec.mapped and isinstance(labels, (yolo.YoloLabels, annotated.ListLabels)):
            labels = NumberedLabels(labels, spec.mapped)
        if spec.numbered:
            labels = NumberedLabels(labels, spec.numbered)
        image_id = entry.image_id if has_own else i
        entries[i] = dataclasses.replace(entry, image_id=image_id, labels=labels)
