"""Which class a category of a COCO JSON is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from horovod_yolo.core.class_names import match_names
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import LabelRules

Key = int | str  # of an image or a category


def key_of(value: object) -> Key | None:
    """An id that can be looked up. Some exporters write 7.0 for 7; true and false are no ids."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def text_of(value: object) -> str:
    """A name. What is nested deep enough to overflow the stack is none."""
    return str(value) if isinstance(value, str | int | float) else ""


def map_categories(
    categories: Sequence[object], used: Collection[Key], names: Sequence[str], file: str, rules: LabelRules
) -> dict[Key, int]:
    """Category id -> class, by name. ``used`` holds the category ids that annotations have.

    Raises:
        UserError: the names do not fit.
    """
    known: dict[Key, Mapping[str, Any]] = {}
    for c in categories:
        if isinstance(c, dict) and (key := key_of(c.get("id"))) is not None:
            if not rules.first_release and key in known:
                _require_one_name(key, known[key], c, file)
            known[key] = c
    if rules.first_release:
        return _as_in_the_first_release(known, used, names, file)
    listed = {key: text_of(c.get("name")) for key, c in known.items()}
    match = match_names(
        [*listed.values()],
        names,
        dict(rules.class_map),
        meeting="the categories of this file and the names in data.yaml",
        where=file,
        used={name for key, name in listed.items() if key in used},
    )
    return {key: found for key, found in zip(listed, match.ids, strict=True) if found is not None}


def _require_one_name(key: Key, first: Mapping[str, Any], second: Mapping[str, Any], file: str) -> None:
    """Raise where an id is that of two categories: whose objects are those that have it?"""
    one, other = text_of(first.get("name")), text_of(second.get("name"))
    if one != other:
        raise UserError(
            f"category id {key!r:.40} is that of {one!r:.80} and of {other!r:.80}",
            where=file,
            fix="give each category an id of its own",
        )


def _as_in_the_first_release(
    known: Mapping[Key, Mapping[str, Any]], used: Collection[Key], names: Sequence[str], file: str
) -> dict[Key, int]:
    """By exact name, else by position: what a run that began so goes on with."""
    ids: dict[str, int] = {}
    for i, name in enumerate(names):
        ids.setdefault(name.strip(), i)
    by_name = {key: ids[name] for key, c in known.items() if (name := text_of(c.get("name")).strip()) in ids}
    if by_name:
        return by_name
    heads = {text_of(c.get("supercategory")) for c in known.values()}
    order = sorted(known, key=lambda key: (isinstance(key, str), key))
    if len(order) != len(names):
        order = [key for key in order if key in used or text_of(known[key].get("name")) not in heads]
    if len(order) != len(names):
        raise UserError(
            f"{len(order)} categories and {len(names)} names", where=file, fix="use the data of the run"
        )
    return {key: i for i, key in enumerate(order)}
