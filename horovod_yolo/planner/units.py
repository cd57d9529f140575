"""Quantities as people write them: ``200Gbit``, ``5us``, ``160kB``."""

from __future__ import annotations

import re

from horovod_yolo.core.errors import UserError

_NUMBER = re.compile(r"([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+)\s*([^\s0-9]*)", re.IGNORECASE)
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}


def bandwidth(text: str, flag: str) -> float:
    """Bytes a second of ``25Gbit``, ``25Gb/s``, ``25Gbps`` (bits) or ``3GB``, ``3GiB/s`` (bytes).

    Raises:
        UserError: names the flag: no number, no such unit, or not above 0.
    """
    example = "200Gbit for bits, or 25GB for bytes a second"
    number, unit = _split(text, flag, example)
    return _above_zero(number * _bytes_of(re.sub(r"(/s|ps)$", "", unit), text, flag, example), text, flag)


def data_size(text: str, flag: str) -> float:
    """Bytes of ``160kB`` or ``2MiB``. Errors as `bandwidth`."""
    example = "160kB"
    number, unit = _split(text, flag, example)
    return _above_zero(number * _bytes_of(unit, text, flag, example), text, flag)


def duration(text: str, flag: str) -> float:
    """Seconds of ``5us``, ``2ms`` or ``0.1s``; 0 is allowed. Errors as `bandwidth`."""
    number, unit = _split(text, flag, "5us, 2ms or 0.1s")
    if unit not in _SECONDS:
        raise _wrong(text, flag, "5us, 2ms or 0.1s")
    return number * _SECONDS[unit]


def _split(text: str, flag: str, example: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text.strip())
    if found is None or not found[2]:
        raise _wrong(text, flag, example)
    return float(found[1]), found[2]


def _bytes_of(unit: str, text: str, flag: str, example: str) -> float:
    """Of ``Gbit`` or ``Gb``, bits; of ``GB`` or ``GiB``, bytes: the case of the last b tells them apart."""
    found = re.fullmatch(r"((?i:[kmgt]i?)?)((?i:bits?)|b|B)", unit)
    if found is None:
        raise _wrong(text, flag, example)
    prefix = found[1].lower()
    factor = _BINARY.get(prefix) or _PREFIXES[prefix]
    return factor if found[2] == "B" else factor / 8


def _above_zero(value: float, text: str, flag: str) -> float:
    if not 0 < value < float("inf"):
        raise UserError(f"{flag} {text}", fix="give more than 0")
    return value


def _wrong(text: str, flag: str, example: str) -> UserError:
    return UserError(f"{flag} {text!r} is no number with a unit", fix=f"write {example}")
