"""What is wrong with hosts, and how rules find it in what the hosts said."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from horovod_yolo.doctor.collect import Facts, Report

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """Something wrong: on which hosts, what, and what to do.

    ``kind`` names the rule for scripts. ``blocks`` tells that no job over these hosts can start.
    """

    hosts: tuple[str, ...]
    kind: str
    what: str
    fix: str
    blocks: bool = False

    def __str__(self) -> str:
        return f"{', '.join(self.hosts)}: {self.what}. {self.fix}"


def merged(found: Iterable[Finding]) -> list[Finding]:
    """Findings that differ in their hosts only become one."""
    hosts: dict[Finding, tuple[str, ...]] = {}
    for finding in found:
        key = dataclasses.replace(finding, hosts=())
        hosts[key] = (*hosts.get(key, ()), *finding.hosts)
    return [dataclasses.replace(key, hosts=names) for key, names in hosts.items()]


def one(report: Report, kind: str, what: str, fix: str, *, blocks: bool = False) -> Finding:
    """Something wrong on one host."""
    return Finding((report.host,), kind, what, fix, blocks)


def hosts_with(reports: Sequence[Report], section: str) -> Iterator[tuple[Report, Facts]]:
    """The reports that got as far as a section, with what it says."""
    return ((report, report.facts[section]) for report in reports if section in report.facts)


def odd_ones(values: Mapping[str, T]) -> tuple[T | None, str, list[str]]:
    """(most frequent value, who has it, hosts that have another); among equals the first host's counts."""
    if not values:
        return None, "", []
    common = Counter(values.values()).most_common(1)[0][0]
    having = [host for host, value in values.items() if value == common]
    who = f"{having[0]} has" if len(having) == 1 else f"{len(having)} hosts have"
    return common, who, [host for host, value in values.items() if value != common]


def differing(
    values: Mapping[str, str], kind: str, what: str, fix: str, *, blocks: bool = True
) -> Iterator[Finding]:
    """A finding for each host whose value is not that of most; ``what`` comes before the value."""
    common, who, odd = odd_ones(values)
    for host in odd:
        yield Finding((host,), kind, f"{what} {values[host]} where {who} {common}", fix, blocks)


def package_facts(reports: Sequence[Report], name: str) -> dict[str, Facts]:
    """What hosts say of a package, of those that have it."""
    return {r.host: facts[name] for r, facts in hosts_with(reports, "packages") if facts[name] is not None}


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
