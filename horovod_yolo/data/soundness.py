"""What a scan found, as a whole: what is said of it, and what must be mended before the first step."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.class_names import FIX, listed
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Ints
from horovod_yolo.data.formats import Problem
from horovod_yolo.data.spec import DataSpec

MOST_SHOWN = 20


@dataclass(frozen=True)
class Counts:
    """How much there is in the usable images of a split."""

    images: int
    without: int  # images that have no box to train on
    unlabelled: int  # of these, images without a label file
    of_class: Ints  # (classes,) boxes to train on
    crowds: int  # regions of many objects, COCO's iscrowd: no boxes to train on

    @property
    def boxes(self) -> int:
        """All that can be trained on."""
        return int(self.of_class.sum())


def count_objects(
    num_classes: int,
    ends: Ints,
    class_id: NDArray[np.integer[Any]],
    crowd: NDArray[np.bool_],
    has_labels: NDArray[np.bool_],
) -> Counts:
    """Counts from flat columns.

    Args:
        num_classes: how many classes there are.
        ends: (images,) how many objects there are up to the end of each image.
        class_id: (objects,) their classes.
        crowd: (objects,) whether they are crowds.
        has_labels: (images,) whether there is a label file.
    """
    trained = np.concatenate(([0], np.cumsum(~crowd)))[np.concatenate(([0], ends))]
    return Counts(
        images=len(ends),
        without=int((np.diff(trained) == 0).sum()),
        unlabelled=int((~has_labels).sum()),
        of_class=np.bincount(class_id[~crowd], minlength=num_classes),
        crowds=int(crowd.sum()),
    )


@dataclass(frozen=True)
class Found:
    """All that the scan of a split has found."""

    split: str
    listed: int  # images that the split names
    counts: Counts
    problems: tuple[Problem, ...]

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain builtins; ``names`` are those of the classes."""
        counts = self.counts
        of_class = zip(names, counts.of_class.tolist(), strict=True)
        return {
            "images": counts.images,
            "images_left_out": self.listed - counts.images,
            "images_without_boxes": counts.without,
            "images_without_label_file": counts.unlabelled,
            "boxes": counts.boxes,
            "crowds": counts.crowds,
            "classes": [{"class": i, "name": n, "boxes": b} for i, (n, b) in enumerate(of_class)],
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
        }


class Tally:
    """All problems of a split, counted; of those that are shown one by one, the first.

    There may be as many as objects, where they are one mistake.
    """

    def __init__(self) -> None:
        self.other_classes: Counter[str] = Counter()  # objects by names that are none of ours
        self.strangers: Counter[str] = Counter()  # of these, where only the whole set can tell what is meant
        self.bad_classes: Counter[int] = Counter()  # rows by numbers that are none of ours
        self.first_bad_class = ""  # where it is
        self.mapped: Counter[str] = Counter()  # objects that a name of the class map has found, 0 as well
        self.pose: Counter[int] = Counter()  # polygons that may be boxes with so many key points
        self.notes: list[Problem] = []
        self.left_out: list[Problem] = []
        self.more = {"note": 0, "left out": 0}

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Tally:
        """Count them."""
        tally = cls()
        for problem in problems:
            tally._add(problem)
        return tally

    def _add(self, problem: Problem) -> None:
        if problem.kind in ("other class", "stranger"):
            self.other_classes[problem.about] += problem.count
            if problem.kind == "stranger":
                self.strangers[problem.about] += problem.count
            return
        if problem.kind == "mapped":
            self.mapped[problem.about] += problem.count
            return
        if problem.kind == "pose":
            self.pose[int(problem.about)] += problem.count
            return
        if problem.kind == "bad class":
            self.bad_classes[_number(problem.about)] += problem.count
            self.first_bad_class = self.first_bad_class or f"{problem.file}:{problem.line}"
        is_note = problem.kind == "note"
        shown = self.notes if is_note else self.left_out
        if len(shown) < MOST_SHOWN:
            shown.append(problem)
        else:
            self.more["note" if is_note else "left out"] += 1


def summary(split: str, counts: Counts) -> str:
    """A line on a split: what there is to train on, and what only looks like it."""
    missing = counts.unlabelled
    line = f"{split}: {counts.images} images, {counts.boxes} boxes, {counts.without} images without"
    if missing:
        line += f" ({missing} have no label file, {counts.without - missing} no object in theirs)"
    return line + (f"; {counts.crowds} crowds beside, which are not trained on" if counts.crowds else "")


def remarks(tally: Tally) -> Iterator[str]:
    """Lines on what was left out and what is to be known, one reason a line, the first of many."""
    others = tally.other_classes
    if others:
        shown = ", ".join(f"{number} of {name!r:.80}" for name, number in others.most_common(MOST_SHOWN))
        more = f" and of {len(others) - MOST_SHOWN} more" if len(others) > MOST_SHOWN else ""
        yield f"left out: objects whose class is none of names: {shown}{more}"
    for old, objects in tally.mapped.items():
        if not objects:
            yield f"note: --class-map {old}=...: no object here is called {old!r:.80}"
    for word, found in (("note", tally.notes), ("left out", tally.left_out)):
        yield from (f"{word}: {problem}" for problem in found)
        if more_like_these := tally.more[word]:
            yield f"{word}: {more_like_these} more like these"


def pose_remark(tally: Tally, boxes: int) -> Iterator[str]:
    """A line where all rows of a split have one length and look like boxes with key points of two numbers.

    Of one row nobody can tell it from a polygon.
    """
    if len(tally.pose) == 1 and (rows := tally.pose.total()) >= boxes:
        points = next(iter(tally.pose))
        yield (
            f"note: all {rows} rows are read as polygons of {points + 2} corners, and look like boxes with "
            f"{points} key points: if they are, write 'kpt_shape: [{points}, 2]' into data.yaml"
        )


def require_sound(spec: DataSpec, split: str, counts: Counts, tally: Tally) -> None:
    """Raise `UserError` where the labels as a whole cannot be what the user means.

    A run that began under the rules of the first release goes on with what it had.
    """
    if spec.rules.first_release:
        return
    if tally.bad_classes and not spec.rules.skip_bad_classes:
        raise _bad_classes(spec, split, counts, tally)
    _require_names(spec, split, counts, tally.strangers)
    if counts.boxes == 0 and counts.crowds:
        raise UserError(
            f"all {counts.crowds} objects of {split} are crowds (iscrowd 1), which are not trained on",
            where=spec.file,
            fix="export single objects with iscrowd 0",
        )


def _bad_classes(spec: DataSpec, split: str, counts: Counts, tally: Tally) -> UserError:
    rows = tally.bad_classes
    shown = ", ".join(f"{number} ({rows[number]} rows)" for number in sorted(rows)[:10])
    return UserError(
        f"{split}: {rows.total()} rows have a class that is not in 0..{len(spec.own_names) - 1}: {shown}; "
        f"the first: {tally.first_bad_class}{_guess(spec, counts, rows)}",
        where=spec.file,
        fix="mend labels or names, or leave such rows out with --skip-bad-classes",
    )


def _guess(spec: DataSpec, counts: Counts, rows: Counter[int]) -> str:
    """What the numbers look like."""
    classes = len(spec.own_names)
    zero_occurs = spec.numbered is None and counts.of_class[0] > 0
    if max(rows) == classes and min(rows) > 0 and not zero_occurs:
        return f" (0 never occurs, {classes} does: are the classes counted from 1?)"
    if min(rows) < 0:
        return " (negative numbers are no classes)"
    return f" (is names too short? It has {classes}, the largest number is {max(rows)})"


def _number(text: str) -> int:
    try:
        return int(float(text))
    except (ValueError, OverflowError):  # shortened for the message
        return -1


def _require_names(spec: DataSpec, split: str, counts: Counts, theirs: Counter[str]) -> None:
    """VOC lists no categories: only all objects together tell which names there are."""
    absent = [name for name, boxes in zip(spec.names, counts.of_class.tolist(), strict=True) if not boxes]
    wrong = absent and split == "train"  # a rare class may be missing from a small validation split
    if theirs and (wrong or counts.boxes == 0):
        raise UserError(
            f"{split}: the objects' names and those in data.yaml differ: {listed(theirs)} here, "
            f"{listed(absent)} there",
            where=spec.file,
            fix=FIX,
        )
