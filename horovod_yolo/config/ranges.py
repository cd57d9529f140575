"""Numbers that flags take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

from horovod_yolo.core.errors import UserError


def check_ranges(options: object, least: Mapping[str, int], shares: Iterable[str]) -> None:
    """Raise `UserError` where an attribute is below its ``least``, or one of ``shares`` is not in 0..1."""
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            _refuse(options, name, f"{smallest} or more")
    for name in shares:
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 1:
            _refuse(options, name, "between 0 and 1")


def _refuse(options: object, name: str, rule: str) -> NoReturn:
    flag = "--" + name.replace("_", "-")
    raise UserError(f"{flag} is {getattr(options, name)!r}", fix=f"it must be {rule}")
