"""Files of ``horovod-yolo bench``: written, read back and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from horovod_yolo.core.errors import UserError
from horovod_yolo.io.atomic import replacing
from horovod_yolo.planner.comm import link_of
from horovod_yolo.planner.links import Link
from horovod_yolo.planner.timeline import Compute, Group

FORMAT = 1
LARGEST_FILE = 1 << 22  # bytes; a file of ours has some kB


@dataclass(frozen=True)
class CommFile:
    """What ``bench comm`` has measured."""

    device: str
    ranks: int
    hosts: int
    engine: str
    allreduce: tuple[tuple[float, float], ...]  # bytes, seconds
    about: dict[str, Any] = field(default_factory=dict)  # versions and the like, for people
    small_sum_s: float | None = None  # of a few numbers, which may take a shorter way than gradients

    @property
    def link(self) -> Link:
        """Between neighbours."""
        return link_of(self.allreduce, self.ranks, self.hosts)

    def small_sum_over(self, ranks: int) -> float | None:
        """`small_sum_s` with another number of ranks, in whose logarithm it grows."""
        return self.small_sum_s and self.small_sum_s * math.log2(ranks) / math.log2(self.ranks)


@dataclass(frozen=True)
class StepFile:
    """What ``bench step`` has measured: medians, of the slowest rank."""

    cfg: str
    imgsz: int
    images: int  # of a rank in a step
    precision: str
    device: str
    ranks: int
    hosts: int
    compute: Compute  # all ranks at once, without exchanges
    step_s: float  # with them
    groups: tuple[Group, ...]
    small_sums: int
    peak_memory_bytes: float
    loader_images_per_s: float | None  # of one core; None where it was not measured
    comm: CommFile | None  # of the same ranks; None for one rank
    about: dict[str, Any] = field(default_factory=dict)


def small_sum_s(files: Sequence[CommFile], nodes: int, ranks: int) -> float | None:
    """Seconds of a small sum over ranks on one node or several, as last measured there."""
    fitting = [found for found in files if (found.hosts > 1) == (nodes > 1)]
    return fitting[-1].small_sum_over(ranks) if fitting else None


Measured = CommFile | StepFile
_KINDS = {"comm": CommFile, "step": StepFile}


def as_json(found: Measured) -> str:
    """A file's content."""
    kind = next(name for name, of in _KINDS.items() if isinstance(found, of))
    return json.dumps({"format": FORMAT, "kind": kind, **asdict(found)}, indent=2) + "\n"


def write(found: Measured, path: Path) -> None:
    """Write a file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with replacing(path) as file:
            file.write(as_json(found).encode())
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=path) from None


def read(path: Path) -> Measured:
    """A file of ``bench``.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        content = json.loads(text)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path) from None
    except (ValueError, RecursionError):
        raise _not_ours(path, "it is no JSON") from None
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in ("comm", "step"):
        raise _not_ours(path, "it says no kind")
    if content.get("format") != FORMAT:
        raise _not_ours(path, f"it has format {content.get('format')!r}, known is {FORMAT}")
    try:
        return _comm(content) if kind == "comm" else _step(content)
    except KeyError as error:
        raise _not_ours(path, f"{error} is missing") from None
    except (TypeError, ValueError) as error:
        raise _not_ours(path, str(error)) from None


def _not_ours(path: Path, why: str) -> UserError:
    return UserError(f"this is no file of horovod-yolo bench ({why})", where=path, fix="measure anew")


def _comm(content: Mapping[str, Any]) -> CommFile:
    times = tuple((_positive(size), _positive(seconds)) for size, seconds in content["allreduce"])
    ranks, hosts = _count(content["ranks"]), _count(content["hosts"])
    if ranks < 2 or len({size for size, _ in times}) < 2:
        raise ValueError("it needs two ranks and two sizes")
    texts = (str(content["device"]), str(content["engine"]))
    small = content.get("small_sum_s")
    small_s = None if small is None else _positive(small)
    return CommFile(texts[0], ranks, hosts, texts[1], times, dict(content["about"]), small_s)


def _step(content: Mapping[str, Any]) -> StepFile:
    compute = content["compute"]
    loader, comm = content["loader_images_per_s"], content["comm"]
    return StepFile(
        cfg=str(content["cfg"]),
        imgsz=_count(content["imgsz"]),
        images=_count(content["images"]),
        precision=str(content["precision"]),
        device=str(content["device"]),
        ranks=_count(content["ranks"]),
        hosts=_count(content["hosts"]),
        compute=Compute(*(_positive(compute[part]) for part in ("forward_s", "backward_s", "update_s"))),
        step_s=_positive(content["step_s"]),
        groups=tuple(Group(_positive(of["size"]), _share(of["ready"])) for of in content["groups"]),
        small_sums=int(content["small_sums"]),
        peak_memory_bytes=_positive(content["peak_memory_bytes"]),
        loader_images_per_s=None if loader is None else _positive(loader),
        comm=None if comm is None else _comm(comm),
        about=dict(content["about"]),
    )


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{value!r} is not above 0")
    return number


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is no count")
    return value


def _share(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{value!r} is no share")
    return number
