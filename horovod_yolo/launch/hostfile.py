"""Hosts and their slots, from a command line or a file; one parser for what the launchers accept.

A line, or an entry of ``--hosts``, is one of ``name``, ``name:4`` (horovodrun, MPICH) and
``name slots=4 max_slots=8`` (Open MPI, horovodrun), and may end with ``weight=0.5``. A name without slots
counts for one. A name that stands twice adds up: PBS writes a line for each process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from horovod_yolo.core.errors import UserError
from horovod_yolo.process.environment import WEIGHTS

MAX_BYTES = 1_000_000
MAX_SLOTS = 1024
# What horovodrun accepts, less a leading '-' or '.', which ssh could take for a flag. ASCII only.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_SETTINGS = ("slots", "max_slots")
_WEIGHT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")


@dataclass(frozen=True)
class Host:
    """A host, how many ranks it takes, and how fast one of them is beside others, where that is said."""

    name: str
    slots: int
    weight: float | None = None

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


def weights(hosts: Iterable[Host]) -> dict[str, str]:
    """The variable that tells ranks the weights of hosts, where any has one; without one it is 1."""
    hosts = list(hosts)
    if all(host.weight is None for host in hosts):
        return {}
    return {WEIGHTS: ",".join(f"{host.name}={host.weight or 1:g}" for host in hosts)}


def parse_hosts(text: str, where: str = "--hosts") -> tuple[Host, ...]:
    """Hosts of ``host1:4,host2:4``, in order of first appearance.

    Raises:
        UserError: not a list of hosts.
    """
    return _merge(((where, entry.strip()) for entry in text.split(",")), where)


def parse_hostfile(text: str, where: object = "hostfile") -> tuple[Host, ...]:
    """Hosts of the text of a hostfile; ``#`` starts a comment, blank lines do not count.

    Raises:
        UserError: names ``where`` and the line.
    """
    lines = ((f"{where}:{n}", line.partition("#")[0].strip()) for n, line in enumerate(text.splitlines(), 1))
    return _merge(((place, line) for place, line in lines if line), where)


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Hosts of a hostfile in UTF-8 of at most 1 MB.

    Raises:
        UserError: it cannot be read, or a line is no host.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"larger than {MAX_BYTES // 1_000_000} MB", where=path, fix="is it a hostfile?")
        text = content.decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path) from None
    except UnicodeDecodeError:
        raise UserError("not a text file in UTF-8", where=path, fix="is it a hostfile?") from None
    return parse_hostfile(text, path)


def _merge(entries: Iterable[tuple[str, str]], where: object) -> tuple[Host, ...]:
    found: dict[str, Host] = {}
    for place, entry in entries:
        host = _parse_entry(entry, place)
        before = found.get(host.name, Host(host.name, 0))
        if None not in (host.weight, before.weight) and host.weight != before.weight:
            raise UserError(f"{host.name} has two weights", where=place, fix="its ranks are equally fast")
        weight = before.weight if host.weight is None else host.weight
        found[host.name] = Host(host.name, before.slots + host.slots, weight)
    if not found:
        raise UserError("names no host", where=where, fix="write a line such as `host1 slots=4`")
    return tuple(found.values())


def _parse_entry(entry: str, place: str) -> Host:
    words = re.sub(r"\s*=\s*", "=", entry).split()
    if not words:
        raise UserError("a host is missing between two commas", where=place)
    address, *settings = words
    if address.count(":") > 1 or address.startswith("["):
        raise UserError(
            f"{_shown(address)} looks like an IPv6 address, which horovodrun does not take",
            where=place,
            fix="give the host a name or an IPv4 address",
        )
    name, colon, count = address.partition(":")
    if not _NAME.fullmatch(name):
        raise UserError(f"{_shown(name)} is no host name", where=place, fix=_name_hint(name))
    weights = [word for word in settings if word.startswith("weight=")]
    found = _settings([word for word in settings if word not in weights], place)
    if colon and "slots" in found:
        raise UserError(f"{name} has its slots twice, after ':' and after 'slots='", where=place)
    slots = _slots(count, place) if colon else found.get("slots", 1)
    if slots > found.get("max_slots", slots):
        raise UserError(f"{name} has more slots ({slots}) than max_slots ({found['max_slots']})", where=place)
    return Host(name, slots, _weight(weights, place))


def _weight(words: list[str], place: str) -> float | None:
    if not words:
        return None
    text = words[0].partition("=")[2]
    if len(words) > 1 or not _WEIGHT.fullmatch(text) or not float(text):
        what = f"{_shown(' '.join(words))} is not one weight above 0"
        raise UserError(what, where=place, fix="such as weight=2 where its ranks are twice as fast")
    return float(text)


def _settings(words: list[str], place: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.replace("-", "_")
        if key not in _SETTINGS or not equals:
            raise UserError(
                f"{_shown(word)} is not understood after a host",
                where=place,
                fix="known: slots=N, max_slots=N, weight=N",
            )
        if key in found:
            raise UserError(f"{key} is given twice", where=place)
        found[key] = _slots(value, place)
    return found


def _slots(text: str, place: str) -> int:
    if re.fullmatch(r"[0-9]{1,6}", text) and 1 <= int(text) <= MAX_SLOTS:
        return int(text)
    raise UserError(f"{_shown(text)} is no number of slots from 1 to {MAX_SLOTS}", where=place)


def _name_hint(name: str) -> str:
    if "[" in name:
        return "`scontrol show hostnames` spells Slurm's short form out"
    if "@" in name:
        return "user names belong into ~/.ssh/config"
    return "letters, digits, '.', '-' and '_' make a name"


def _shown(text: str) -> str:
    """What was given, short and without control characters."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")
