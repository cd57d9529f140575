"""Where two lists of class names meet: categories and ``names``, a checkpoint and the data.

Names are one where they are equal but for case and spaces. Nothing is ever mapped by its place in a list.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from horovod_yolo.core.errors import UserError

MOST_LISTED = 20
FIX = "rename them, or say which is which: --class-map OLD=NEW,... (or a YAML file; OLD= leaves a class out)"


@dataclass(frozen=True)
class NameMatch:
    """Which of our classes each of their names is."""

    ids: tuple[int | None, ...]  # of each of theirs: its place in ours; None where it is left out
    left_out: tuple[str, ...]  # theirs that are none of ours and that nobody said to leave out
    absent: tuple[str, ...]  # ours that none of theirs is

    @property
    def is_identity(self) -> bool:
        """Whether both lists are the same classes in the same order."""
        return not self.absent and self.ids == tuple(range(len(self.ids)))


def loose(name: str) -> str:
    """A name without case and spaces, its accents composed."""
    return "".join(unicodedata.normalize("NFC", name).casefold().split())


def find_names(
    theirs: Sequence[str], ours: Sequence[str], class_map: Mapping[str, str] | None = None
) -> NameMatch:
    """Match two lists as far as they have names in common; an exact name goes before a loose one.

    Equal lists are the same classes, also where a name is in them twice.

    Raises:
        UserError: the class map sends one of theirs to a name that is none of ours.
    """
    if not class_map and [*theirs] == [*ours]:
        return NameMatch(tuple(range(len(ours))), (), ())
    lookup = _Lookup(ours)
    wanted = {loose(old): (old, new) for old, new in (class_map or {}).items()}
    ids: list[int | None] = []
    left_out = []
    for name in theirs:
        old, new = wanted.get(loose(name), ("", name))
        found = lookup.find(new) if new.strip() else None
        if found is None and old and new.strip():
            raise UserError(
                f"--class-map {old}={new}: {new!r} is none of {listed(ours)}", fix="name one of them, or none"
            )
        if found is None and new.strip():
            left_out.append(name)
        ids.append(found)
    absent = tuple(name for i, name in enumerate(ours) if i not in ids)
    return NameMatch(tuple(ids), tuple(left_out), absent)


def without_own(class_map: Mapping[str, str], ours: Collection[str]) -> dict[str, str]:
    """A class map for the lists of models: what labels call cat may be a dog, but a class "cat" is itself."""
    own = {loose(name) for name in ours}
    return {old: new for old, new in class_map.items() if not new.strip() or loose(old) not in own}


def match_names(
    theirs: Sequence[str],
    ours: Sequence[str],
    class_map: Mapping[str, str] | None = None,
    *,
    meeting: str,
    where: object = None,
    used: Collection[str] | None = None,
) -> NameMatch:
    """`find_names` for lists that must fit: equal sets, or one a part of the other.

    Args:
        theirs: the names that get a class of ours.
        ours: the names of our classes.
        class_map: their name -> ours, or "" to leave it out.
        meeting: what the lists are, for people: "the categories and names of data.yaml".
        where: the file that theirs are from.
        used: those of theirs that objects have; the others are no strangers. None: all of them.

    Raises:
        UserError: strangers on both sides, or no name in common; it shows both lists.
    """
    match = find_names(theirs, ours, class_map)
    strangers = [name for name in match.left_out if used is None or name in used]
    alike = any(found is not None for found in match.ids)
    if (alike and not (strangers and match.absent)) or (not match.left_out and match.ids):
        return match
    reason = "have no name in common"
    if alike:
        reason = f"differ: {listed(strangers, 5)} here, {listed(match.absent, 5)} there"
    raise UserError(
        f"{meeting} {reason}. They are {listed(theirs)}; and {listed(ours)}", where=where, fix=FIX
    )


def listed(names: Collection[str], most: int = MOST_LISTED) -> str:
    """Names for a message."""
    shown = ", ".join(repr(name) for name in [*names][:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "none"


class _Lookup:
    """Places of names in a list; of equal names the first counts, unless they are equal only loosely."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact: dict[str, int] = {}
        self._loose: dict[str, int | None] = {}
        for i, name in enumerate(names):
            first = self._exact.setdefault(name.strip(), i)
            same = self._loose.setdefault(loose(name), first)
            if same != first:
                self._loose[loose(name)] = None  # "Cat" and "cat": which one is "CAT"?

    def find(self, name: str) -> int | None:
        exact = self._exact.get(name.strip())
        return self._loose.get(loose(name)) if exact is None else exact
