"""YAML from strangers: a mapping of builtins, in bounded time and memory, no code run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from horovod_yolo.core.errors import UserError
from horovod_yolo.io.files import read_bytes

_UTF16 = "UTF-16 text, as some Windows programs write it"
# What PyYAML lets through beside its own errors, for `!!int ""`, `!!timestamp x` and the like.
_DAMAGE = (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _PlainLoader(yaml.SafeLoader):
    """Settings have no use for aliases, and a few lines of them can stand for billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias, write the value itself", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, but a key that is there twice is a mistake: the first would be lost without a word."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r:.60} twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _text_of(node: yaml.Node) -> Any:
    """A node with all scalars as they are written; None for what is empty."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag.endswith(":null") else str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_text_of(item) for item in node.value]
    return {str(_text_of(key)): _text_of(value) for key, value in node.value}


def read_mapping(
    path: Path, *, most_bytes: int, what: str, as_text: Collection[str] = (), plain_text: bool = False
) -> dict[str, Any]:
    """Read a YAML mapping that is ``what`` ("a data file", "a settings file").

    Below the keys ``as_text``, or with ``plain_text`` everywhere, keys and values are the text that is
    written: YAML takes 010 for 8 and no for false.

    Raises:
        UserError: it is missing, larger than ``most_bytes``, not YAML, or not a mapping.
    """
    try:
        data = read_bytes(path, most_bytes)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot be read: {reason}", where=path, fix=f"name {what}") from None
    try:
        values = _parsed(data, as_text, plain_text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = (
            _UTF16
            if b"\0" in data[:64]
            else f"not UTF-8 text (byte 0x{data[error.start]:02x} in line {line})"
        )
        raise UserError(what, where=path, fix="save it as UTF-8") from None
    except _DAMAGE as error:
        raise UserError(f"not valid YAML ({_first_line(error)})", where=path, fix="mend the file") from None
    if not isinstance(values, dict):
        raise UserError("not a mapping of names to values", where=path, fix="write it as `name: value` lines")
    return values


def _parsed(data: bytes, as_text: Collection[str], plain_text: bool) -> Any:
    loader = _PlainLoader(data.decode("utf-8-sig"))
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        values = loader.construct_document(node)
        if plain_text:
            return _text_of(node)
        if isinstance(node, yaml.MappingNode) and isinstance(values, dict):
            for key, value in node.value:
                if key.value in as_text:
                    values[key.value] = _text_of(value)
        return values
    finally:
        loader.dispose()


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).split("\n")[0]
    return f"{problem[:200]}, line {mark.line + 1}" if mark else problem[:200]
