"""How much memory this host, or the control group of this process, has left."""

from __future__ import annotations

from pathlib import Path

import psutil

_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
_NAMES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def free_memory() -> int:
    """Bytes that can still be taken without pushing anything out but copies of files."""
    lefts = [left for place in _groups() if (left := _left(place)) is not None]
    return min([int(psutil.virtual_memory().available), *lefts])


def _groups() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            place = _ROOTS[bool(controllers)] / path.lstrip("/")
            found += [place, *place.parents]
    return found


def _left(folder: Path) -> int | None:
    """What the limit of a control group's folder leaves, of version 2 or 1; None where it has none."""
    for limit, usage in _NAMES:
        try:
            most, used = ((folder / name).read_text() for name in (limit, usage))
            rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            files = {name: int(size) for name, size in rows}.get("inactive_file", 0)
            return max(0, int(most) - int(used) + files)
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None
