"""YAML from strangers: a mapping of builtins, in bounded time and memory, no code run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from horovod_yolo.core.errors import UserError
from horovod_yolo.io.files import read_bytes

# What PyYAML lets through beside its own errors, for `!!int ""`, `!!timestamp x` and the like.
_DAMAGE = (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _PlainLoader(yaml.SafeLoader):
    """Settings have no use for aliases, and a few lines of them can stand for billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias, write the value itself", self.get_mark())
        return super().compose_node(parent, index)


def read_mapping(path: Path, *, most_bytes: int, what: str) -> dict[str, Any]:
    """Read a YAML mapping that is ``what`` ("a data file", "a settings file").

    Raises:
        UserError: it is missing, larger than ``most_bytes``, not YAML, or not a mapping.
    """
    try:
        data = read_bytes(path, most_bytes)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot be read: {reason}", where=path, fix=f"name {what}") from None
    try:
        values = yaml.load(data.decode("utf-8-sig"), _PlainLoader)
    except _DAMAGE as error:
        raise UserError(f"not valid YAML ({_first_line(error)})", where=path, fix="mend the file") from None
    if not isinstance(values, dict):
        raise UserError("not a mapping of names to values", where=path, fix="write it as `name: value` lines")
    return values


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).split("\n")[0]
    return f"{problem[:200]}, line {mark.line + 1}" if mark else problem[:200]
