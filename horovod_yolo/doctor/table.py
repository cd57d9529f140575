"""The examination for people: hosts side by side, their links, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from horovod_yolo.doctor.collect import Report
from horovod_yolo.doctor.examine import Examination
from horovod_yolo.doctor.findings import size
from horovod_yolo.doctor.network_rules import rates, slowest, speed

MOST_HOSTS = 4  # side by side on a page; those with findings first
MOST_LINKS = 8  # hosts of which all pairs are shown
ABSENT = "–"

# Which row a finding belongs to.
ROWS = {
    "ssh": ("ssh-key", "host-key", "host-name", "host-down", "no-answer"),
    "python": ("python", "python-missing", "folder"),
    "torch": ("torch", "torch-missing", "cuda"),
    "Horovod": ("horovod", "horovod-missing"),
    "  for torch": ("horovod-torch",),
    "  backends": ("horovod", "nccl"),
    "horovod_yolo": ("code", "horovod_yolo-missing"),
    "packages": ("packages",),
    "GPUs": ("gpu", "slots"),
    "driver": ("driver",),
    "data": ("data-missing", "data-differs"),
    "free for runs": ("disk", "run-folder"),
    "  for caches": ("disk",),
    "  in /tmp": ("disk",),
    "/dev/shm": ("shm",),
    "open files": ("nofile",),
    "locked memory": ("memlock",),
    "clock": ("clock",),
    "own name": ("own-name",),
    "interfaces": ("interface",),
}


def show(examination: Examination, console: Console) -> None:
    """Print it."""
    console.print(_hosts(examination))
    left = len(examination.reports) - MOST_HOSTS
    if left > 0:
        console.print(f"{left} more host{'s' if left > 1 else ''}: see --json")
    names = [report.host for report in examination.reports if report.complete]
    if examination.network.bits and len(names) <= MOST_LINKS:
        console.print(_links(examination, names))
    for line in _conclusions(examination):
        console.print(line)


def _hosts(examination: Examination) -> Table:
    named = [name for finding in examination.findings for name in finding.hosts]
    shown = sorted(examination.reports, key=lambda report: report.host not in named)[:MOST_HOSTS]
    shown.sort(key=examination.reports.index)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for report in shown:
        table.add_column(Text(report.host), overflow="fold")
    marks = {(name, finding.kind) for finding in examination.findings for name in finding.hosts}
    columns = [_cells(report) for report in shown]
    for row, kinds in ROWS.items():
        cells = [
            Text(column[row], style="bold red" if any((r.host, kind) in marks for kind in kinds) else "")
            for r, column in zip(shown, columns, strict=True)
        ]
        if any(cell.plain != ABSENT for cell in cells):
            table.add_row(row, *cells)
    return table


def _cells(report: Report) -> dict[str, str]:
    """A text for each row."""
    cells = dict.fromkeys(ROWS, ABSENT)
    cells["ssh"] = "answers" if report.complete else "no answer"
    facts = report.facts
    for section, write in _WRITERS.items():
        if section in facts:
            cells.update(write(facts[section]))
    if report.clock is not None:
        cells["clock"] = _clock(*report.clock)
    return cells


def _clock(least: float, most: float) -> str:
    """By how much it is certainly off."""
    off = least if least > 0 else min(most, 0.0)
    return "same" if abs(off) < 1 else f"{off:+.0f} s"


def _packages(facts: dict[str, Any]) -> dict[str, str]:
    cells = {}
    if facts["torch"]:
        cells["torch"] = facts["torch"]["version"]
    if horovod := facts["horovod"]:
        cells["Horovod"] = str(horovod["version"]).split("+")[0]
        cells["  for torch"] = str(horovod["built_for"])
        cells["  backends"] = " ".join(horovod["backends"])
    if ours := facts["horovod_yolo"]:
        cells["horovod_yolo"] = f"{ours['version']} {ours['digest'][:7]}"
    return cells


def _gpus(facts: dict[str, Any]) -> dict[str, str]:
    if facts["error"]:
        return {"GPUs": "error"}
    names = [gpu["name"] for gpu in facts["gpus"]]
    found = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return {"GPUs": found or "none", "driver": facts["gpus"][0]["driver"] if names else ABSENT}


def _limits(facts: dict[str, Any]) -> dict[str, str]:
    files, locked = facts["nofile"][0], facts["memlock"][0]
    return {
        "/dev/shm": size(facts["shm"]["total"]) if facts["shm"] else "missing",
        "open files": "any" if files is None else str(files),
        "locked memory": "any" if locked is None else size(locked),
    }


def _disks(facts: dict[str, Any]) -> dict[str, str]:
    rows = {"run": "free for runs", "cache": "  for caches", "tmp": "  in /tmp"}
    return {rows[what]: size(space["free"]) if space else "?" for what, space in facts.items()}


def _data(facts: dict[str, Any]) -> dict[str, str]:
    splits = facts.get("splits", {})
    counts = ", ".join(f"{split} {found['images']}" for split, found in splits.items())
    return {"data": counts or "not there"}


def _network(facts: dict[str, Any]) -> dict[str, str]:
    cards = [f"{card['name']} {card['address']}" for card in facts["interfaces"]]
    return {"interfaces": "\n".join(cards) or "none", "own name": facts["own_address"] or "no address"}


_WRITERS = {
    "python": lambda facts: {"python": facts["version"]},
    "packages": _packages,
    "gpus": _gpus,
    "limits": _limits,
    "disks": _disks,
    "data": _data,
    "network": _network,
}


def _links(examination: Examination, names: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Mbit/s from, to")
    for name in names:
        table.add_column(Text(name), justify="right")
    for name, row in zip(names, rates(examination.network, names), strict=True):
        table.add_row(Text(name), *(ABSENT if bits is None else f"{bits / 1e6:.0f}" for bits in row))
    return table


def _conclusions(examination: Examination) -> list[RenderableType]:
    lines: list[RenderableType] = []
    found = slowest(examination.network)
    if found is not None:
        (source, target), bits = found
        lines.append(Text(f"slowest link: {source} and {target}, {speed(bits)}"))
    trial = examination.trial
    if trial is not None and not trial.error:
        lines.append(
            Text(f"allreduce of {size(trial.bytes)} over {trial.ranks} ranks: {trial.seconds * 1e3:.1f} ms")
        )
    elif trial is None:
        lines.append(Text("allreduce: not tried, a job could not start"))
    lines += [Text(f"note: {note}") for note in examination.notes]
    for finding in examination.findings:
        where = ", ".join(finding.hosts[:8]) + (" ..." if len(finding.hosts) > 8 else "")
        head = Text(f"{where}: " if where else "", style="bold")
        lines += [Text.assemble(head, (finding.what, "red")), Padding(finding.fix, (0, 0, 0, 4))]
    lines.append(Text("healthy" if examination.healthy else f"{len(examination.findings)} to mend"))
    return lines
