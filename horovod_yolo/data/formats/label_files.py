"""Where the label file of an image is.

That of ``.../images/a/b.jpg`` is ``.../labels/a/b.txt``: the last folder called ``images`` below the root of
the data set counts, then the one before it; without such a file it lies beside the image. A name that differs
in case, in how accents are composed or in percent signs is the same where no other image claims it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from horovod_yolo.core.class_names import loose
from horovod_yolo.data.formats import Folders, Problem, alike
from horovod_yolo.data.read import IMAGE_SUFFIXES
from horovod_yolo.io.files import read_bytes

MOST_NAMED = 3
MOST_LETTERS = 120  # of a name in a message
MAX_LIST_BYTES = 1 << 20
_CLASS_LISTS = ("classes.txt", "obj.names", "_darknet.labels")  # as labelling tools write them
_NO_LABELS = frozenset(("classes.txt", "labels.txt", "readme.txt", "license.txt", "notes.txt"))


def label_path(image: Path) -> Path:
    """An image's label file where nothing else is known: the last folder ``images`` becomes ``labels``."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


class LabelFinder:
    """Finds the label files of one folder or list, and remembers what is to be said of them."""

    def __init__(self, root: Path, folders: Folders) -> None:
        self._root = root
        self._folders = folders
        self._places: dict[Path, list[Path]] = {}
        self._images: dict[Path, Counter[str]] = {}
        self._used: dict[Path, set[str]] = {}
        self._missing: list[str] = []
        self._missing_of: dict[Path, set[str]] = {}  # by the folder of the labels
        self._elsewhere: list[tuple[Path, Path]] = []
        self._looked_for = 0

    def of_folder(self, folder: Path, images: Sequence[str]) -> list[Path]:
        """The label file of each image in a folder."""
        self._images[folder] = Counter(alike(_stem(name)) for name in images)
        return [self._find(folder, name) for name in images]

    def of_image(self, image: Path) -> Path:
        """The label file of one image."""
        if image.parent not in self._images:
            names = self._folders.names(image.parent)
            images = (name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
            self._images[image.parent] = Counter(alike(_stem(name)) for name in images)
        return self._find(image.parent, image.name)

    def remarks(self, where: str, *, strays: bool) -> list[Problem]:
        """Notes on labels that are missing, were found elsewhere, or belong to no image of the folder."""
        found = []
        if self._elsewhere:
            label, image = self._elsewhere[0]
            count = f"{len(self._elsewhere)} label files are spelled otherwise or lie elsewhere"
            found.append(
                Problem(
                    where,
                    None,
                    f"{count}, such as {_shown(str(label))} of {_shown(str(image))}: taken",
                    "note",
                )
            )
        if self._missing:
            named = ", ".join(_shown(name) for name in self._missing[:MOST_NAMED])
            count = f"{len(self._missing)} of {self._looked_for} images have no label file, such as {named}"
            reason = f"{count}: those that can be used are background"
            found.append(Problem(where, None, reason, "note", count=len(self._missing)))
        return [*found, *self._doubles(), *self._misplaced(), *(self._strays() if strays else ())]

    def class_lists(self, names: Sequence[str]) -> Iterator[Problem]:
        """Notes on lists of class names beside the labels that number them otherwise than ``names``."""
        for folder in dict.fromkeys(above for used in self._used for above in (used, *used.parents)):
            for name in _CLASS_LISTS:
                if folder.is_relative_to(self._root) and name in self._folders.names(folder):
                    yield from _other_names(folder / name, names)

    def _doubles(self) -> Iterator[Problem]:
        """Images with label files in several places: which of them is meant?"""
        for places in self._places.values():
            for i, place in enumerate(places[1:], 1):
                second = {alike(name) for name in self._folders.names(place) if _is_label(name)}
                for first in places[:i] if second else ():
                    if both := sorted(name for name in self._used.get(first, ()) if alike(name) in second):
                        shown = ", ".join(_shown(name) for name in both[:MOST_NAMED])
                        reason = f"{len(both)} label files are in {place} too, such as {shown}"
                        yield Problem(str(first), None, f"{reason}: these here are taken", "note")

    def _misplaced(self) -> Iterator[Problem]:
        """Files with the names of missing ones in the folders around, but for those of another split."""
        for place, wanted in self._missing_of.items():
            root = next((above for above in (place, *place.parents) if above.name.lower() == "labels"), None)
            if root is None or not root.is_relative_to(self._root):
                continue
            around = root if place == root else place.parent
            for folder in (root, *(around / name for name in sorted(self._folders.names(around)))):
                yield from self._found_in(folder, wanted, root)

    def _found_in(self, folder: Path, wanted: set[str], root: Path) -> Iterator[Problem]:
        images = root.with_name("images") / folder.relative_to(root)
        if folder in self._used or folder.suffix or (folder != root and self._folders.hold(images)):
            return
        if found := sorted(wanted & self._folders.names(folder)):
            shown = ", ".join(_shown(name) for name in found[:MOST_NAMED])
            reason = f"{len(found)} files have the names of missing label files, such as {shown}: not taken"
            yield Problem(str(folder), None, reason, "note")

    def _strays(self) -> Iterator[Problem]:
        for folder, used in self._used.items():
            names = [name for name in self._folders.names(folder) - used if _is_label(name)]
            if names:
                shown = ", ".join(_shown(name) for name in sorted(names)[:MOST_NAMED])
                reason = f"{len(names)} label files belong to no image, such as {shown}"
                yield Problem(str(folder), None, reason, "note")

    def _find(self, folder: Path, image: str) -> Path:
        self._looked_for += 1
        places = self._places_of(folder)
        stem = _stem(image)
        if f"{stem}.txt" in self._folders.names(places[0]):  # quick, for sets are large and paths are slow
            self._used.setdefault(places[0], set()).add(f"{stem}.txt")
            return places[0] / f"{stem}.txt"
        for place in places[1:]:
            if f"{stem}.txt" in self._folders.names(place):
                return self._take(place / f"{stem}.txt", folder / image, places)
        if self._images[folder][alike(stem)] == 1:
            for place in places:
                for wanted in (f"{stem}.txt", f"{image}.txt"):
                    if label := self._folders.spelled(place / wanted):
                        return self._take(label, folder / image, places)
        self._missing.append(image)
        self._missing_of.setdefault(places[0], set()).add(f"{stem}.txt")
        if places[0] != folder:
            self._used.setdefault(places[0], set())
        return places[0] / f"{stem}.txt"

    def _take(self, label: Path, image: Path, places: Sequence[Path]) -> Path:
        self._used.setdefault(label.parent, set()).add(label.name)
        if label != places[0] / f"{_stem(image.name)}.txt":
            self._elsewhere.append((label, image))
        return label

    def _places_of(self, folder: Path) -> list[Path]:
        """Folders that may hold the labels of a folder's images, best first."""
        if folder not in self._places:
            self._places[folder] = [*dict.fromkeys([*self._label_folders(folder), folder])]
        return self._places[folder]

    def _label_folders(self, folder: Path) -> Iterator[Path]:
        parts = folder.parts
        inside = folder.is_relative_to(self._root)
        # The root itself may be the folder of the images; what lies above it is somebody else's.
        first = len(self._root.parts) - 1 if inside else 0
        for i in range(len(parts) - 1, first - 1, -1):
            if parts[i].lower() != "images":
                continue
            above = Path(*parts[:i])
            exact = above / "labels"
            named = exact if self._folders.hold(exact) else self._folders.spelled(exact) or exact
            yield named.joinpath(*parts[i + 1 :])


def _other_names(file: Path, names: Sequence[str]) -> Iterator[Problem]:
    try:
        lines = read_bytes(file, MAX_LIST_BYTES).decode("utf-8-sig", errors="replace").splitlines()
    except OSError:  # what it might say does not count anyway
        return
    theirs = [line for line in lines if line.strip()]
    pairs = enumerate(zip(theirs, names, strict=False))
    if differ := [f"{i} is {a!r:.60} there, {b!r:.60} here" for i, (a, b) in pairs if loose(a) != loose(b)]:
        more = f" and {len(differ) - MOST_NAMED} more" if len(differ) > MOST_NAMED else ""
        reason = f"it numbers the classes otherwise than names: {'; '.join(differ[:MOST_NAMED])}{more}"
        yield Problem(str(file), None, f"{reason}: names counts", "note")


def _shown(name: str) -> str:
    """A file's name for a message: its end where it is long, also where it is no UTF-8."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return text if len(text) <= MOST_LETTERS else "..." + text[-MOST_LETTERS:]


def _stem(name: str) -> str:
    return name[: name.rindex(".")]


def _is_label(name: str) -> bool:
    return name.lower().endswith(".txt") and name.lower() not in _NO_LABELS and not name.startswith(".")
