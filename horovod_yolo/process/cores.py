"""How many threads a rank takes: its share of the cores, where other ranks may have the same ones."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")


@dataclass(frozen=True)
class Cores:
    """What a process may run on: these cores, for ``quota`` seconds a second together with its ``group``."""

    cores: frozenset[int]
    quota: float = math.inf
    group: str = ""


def own_cores() -> Cores:
    """Those of this process: its affinity, which a cpuset bounds, and the quota of its control group."""
    quota, group = _quota()
    return Cores(frozenset(os.sched_getaffinity(0)), quota, group)


def threads(mine: Cores, neighbours: Sequence[Cores]) -> int:
    """Threads for a rank, 1 or more: as many as it has whole cores, see `share`."""
    return max(1, math.floor(share(mine, neighbours) + 1e-9))


def share(mine: Cores, neighbours: Sequence[Cores]) -> float:
    """Cores' worth of time that a rank has.

    Each core is shared by the ranks that may run on it, and a quota by those of its group: ranks that the
    launcher bound to cores of their own take all of these, and those that share a cpuset a part.

    Args:
        mine: what this rank has.
        neighbours: what the ranks of this host have, this one among them.
    """
    cores = sum(1 / sum(core in other.cores for other in neighbours) for core in mine.cores)
    quota = mine.quota / sum(other.group == mine.group for other in neighbours)
    return min(cores, quota)


def _quota() -> tuple[float, str]:
    """(cores' worth of time, the control group that it is for); infinite where none is set."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        space = str(Path("/proc/self/ns/cgroup").stat().st_ino)  # in a container of its own each is "/"
    except OSError:
        return math.inf, ""
    found = [(math.inf, "")]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = _V2 if not controllers else _V1 if "cpu" in controllers.split(",") else None
        if root is not None:
            place = root / path.lstrip("/")
            found += [(_quota_of(folder), f"{space}:{folder}") for folder in (place, *place.parents)]
    return min(found)


def _quota_of(folder: Path) -> float:
    """The quota that a control group's folder sets, of version 2 or 1."""
    try:
        if (folder / "cpu.max").exists():
            allowed, period = (folder / "cpu.max").read_text().split()
        else:
            allowed, period = ((folder / f"cpu.cfs_{of}_us").read_text() for of in ("quota", "period"))
        return math.inf if allowed == "max" or int(allowed) < 0 else int(allowed) / int(period)
    except (OSError, ValueError):
        return math.inf
