"""Which ranks were on which hosts, and where the time of each went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from horovod_yolo.report.page import number, table
from horovod_yolo.report.plots import COLOURS

_MOST_RANKS = 16  # that are shown at once
_PARTS = ("computed", "waited for data", "waited for ranks")
_PHASES = {"training": "total_s", "validation": "validation_s", "end of epochs": "commit_s"}
Ranks = Sequence[Mapping[str, Any]]  # as results.json has them


def rank_sections(ranks: Ranks, slowest: int | None) -> list[str]:
    """Sections of a report; that of the rank for which the others waited is marked."""
    return [_map(ranks, slowest), _time_table(ranks, slowest)]


def _shares(spent: Mapping[str, Any]) -> tuple[float, float, float]:
    """Of the time of training, by `_PARTS`."""
    total = spent["total_s"] or 1.0
    waits = spent["data_wait_s"] / total, spent["rank_wait_s"] / total
    return (max(1 - sum(waits), 0.0), *waits)


def _time_table(ranks: Ranks, slowest: int | None) -> str:
    lines = []
    for rank, spent in enumerate(ranks):
        marked = rank == slowest and len(ranks) > 1
        name = f'<td class="best">{rank} set the pace</td>' if marked else str(rank)
        shares = [f"{share:.0%}" for share in _shares(spent)]
        phases = [number(spent[key], "time") if key in spent else "–" for key in _PHASES.values()]
        lines.append([name, escape(str(spent["host"])), *shares, *phases])
    whole = table("Time of each rank", ["rank", "host", *_PARTS, *_PHASES], lines)
    if len(lines) <= _MOST_RANKS:
        return whole
    return f"<details><summary>Time of each of {len(lines)} ranks</summary>{whole}</details>"


def _map(ranks: Ranks, slowest: int | None) -> str:
    """The cluster: each host with its ranks, as bars of what their time went into."""
    if len(ranks) < 2:
        return ""
    hosts: dict[str, list[int]] = {}
    for rank, spent in enumerate(ranks):
        hosts.setdefault(str(spent["host"]), []).append(rank)
    legend = " ".join(
        f'<span class="part" style="background:{colour}"></span> {part}'
        for part, colour in zip(_PARTS, COLOURS, strict=False)
    )
    shown = "\n".join(
        _host(host, {rank: ranks[rank] for rank in own}, slowest) for host, own in hosts.items()
    )
    return f'<h2>Cluster</h2>\n<p class="run">{legend}</p>\n<div class="hosts">{shown}</div>'


def _host(name: str, ranks: Mapping[int, Mapping[str, Any]], slowest: int | None) -> str:
    devices = Counter(str(spent["device"]) for spent in ranks.values() if "device" in spent)
    on = ", ".join(f"{count} × {device}" for device, count in devices.items())
    marks = {slowest: ' class="slowest"'}
    bars = "".join(
        f"<li{marks.get(rank, '')}><span>{rank}</span>{_bar(_shares(spent))}</li>"
        for rank, spent in ranks.items()
    )
    return f"<section><h3>{escape(name)}</h3><p>{escape(on)}</p><ul>{bars}</ul></section>"


def _bar(shares: Sequence[float]) -> str:
    parts = "".join(
        f'<span style="width:{share:.1%};background:{colour}"></span>'
        for share, colour in zip(shares, COLOURS, strict=False)
    )
    return f'<span class="bar" aria-hidden="true">{parts}</span>'
