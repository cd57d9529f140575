"""Settings that come as environment variables: numbers, without units."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping

from horovod_yolo.core.errors import UserError

# Ours and Horovod's. Of `10m` Horovod's C code would read 10, of `ten` 0, and say nothing.
_NUMBERS = re.compile(r"HOROVOD_[A-Z0-9_]*(SECONDS|TIME|TIMEOUT|THRESHOLD|CAPACITY|STREAMS)")

WEIGHTS = "HOROVOD_YOLO_WEIGHTS"  # host1=1,host2=0.5: how fast a rank of each host is, beside the others


def weights_of_hosts(environ: Mapping[str, str] = os.environ) -> dict[str, float]:
    """How fast a rank of each host is, by name; empty where it is not said.

    Raises:
        UserError: the variable is no such list.
    """
    entries = [entry.partition("=")[::2] for entry in environ.get(WEIGHTS, "").split(",") if entry.strip()]
    found = {}
    for name, text in entries:
        try:
            found[name.strip()] = float(text)
        except ValueError:
            found[name.strip()] = math.nan
        if not 0 < found[name.strip()] < math.inf:
            raise UserError(f"{text[:60]!r} of {name[:60]!r} is no weight above 0", where=WEIGHTS)
    return found


def check_numbers(environ: Mapping[str, str] = os.environ) -> None:
    """Variables that mean a number must be one, 0 or more; an empty one counts as not set.

    Raises:
        UserError: names the first that is not.
    """
    for name in sorted(environ):
        if _NUMBERS.fullmatch(name):
            number(name, 0, environ)


def number(name: str, default: float, environ: Mapping[str, str] = os.environ) -> float:
    """The value of a variable; ``default`` where it is empty or not set.

    Raises:
        UserError: it is no finite number, or below 0.
    """
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"{text[:60]!r} is no number", where=name, fix="write it without a unit, such as 60")
    return value
