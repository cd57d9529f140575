"""The scan of a split by many ranks: who opens which files, and how the hosts' caches get what they find."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from horovod_yolo.assembly.meetings import Background, meetings
from horovod_yolo.core.types import Ints
from horovod_yolo.data.annotation_cache import AnnotationCache, Known
from horovod_yolo.data.formats import Entry
from horovod_yolo.data.listing import Survey
from horovod_yolo.data.scan import join, scan, tabulate, take
from horovod_yolo.data.spec import DataSpec
from horovod_yolo.data.table import Table
from horovod_yolo.distributed.communicator import Communicator

log = logging.getLogger(__name__)
ENTRIES_OF_A_PART = 256
ROWS_OF_A_MESSAGE = 50_000
SECONDS_BETWEEN_PIECES = 30.0  # what a killed scan loses at most
SECONDS_BETWEEN_LINES = 15.0
Part = tuple[Ints, Table]  # positions among the entries, and their rows


class Seen(NamedTuple):
    """What the keeper of a host's cache tells the others."""

    name: str  # of the host, for people
    sizes: str  # hash: equal for copies of a data set
    copy: str  # names the copy that this host sees
    known: str  # names the rows that it knows
    missing: int  # rows that it does not know
    whole: bool  # whether it has just these rows in one file; else they are parts of others


@dataclass(frozen=True)
class Keeper:
    """The rank that keeps its host's cache."""

    survey: Survey
    known: Known
    cache: AnnotationCache


@dataclass(frozen=True)
class Plan:
    """Which ranks see the same copy of the files, the same on all ranks."""

    seen: list[Seen | None]  # by rank; None for ranks that are no keepers
    copies: list[str]  # by rank: the copy that it sees; empty where nobody knows

    @classmethod
    def of(cls, hosts: Sequence[str], seen: Sequence[Seen | None]) -> Plan:
        """From each rank's host, and what the keepers have seen."""
        copies = []
        for rank, host in enumerate(hosts):
            # Ranks of a host usually follow its keeper; where hosts have one name, that tells them apart.
            nearest = [*range(rank, -1, -1), *range(rank + 1, len(hosts))]
            here = (look for other in nearest if hosts[other] == host and (look := seen[other]) is not None)
            look = next(here, None)
            copies.append(look.copy if look else "")
        return cls(list(seen), copies)

    def best(self, copy: str) -> int:
        """The keeper that knows most of a copy."""
        known = {rank: look.missing for rank, look in enumerate(self.seen) if look and look.copy == copy}
        return min(known, key=lambda rank: (known[rank], rank))

    def has_its_rows(self, rank: int) -> bool:
        """Whether a keeper knows just the rows that the best of its copy knows."""
        mine, best = self.seen[rank], self.seen[self.best(self.copies[rank])]
        return mine is not None and best is not None and mine.known == best.known


def scan_together(
    comm: Communicator,
    plan: Plan,
    entries: Sequence[Entry],
    spec: DataSpec,
    split: str,
    keeper: Keeper | None,
) -> list[Part]:
    """Scan what no cache knows. *Collective.*

    Returns:
        On keepers the rows of all entries, as they see them; else nothing.
    """
    copy = plan.copies[comm.rank]
    is_best = keeper is not None and plan.best(copy) == comm.rank
    wanted = np.flatnonzero(~keeper.known.rows) if keeper is not None and is_best else None
    wanted_of = {
        plan.copies[rank]: todo for rank, todo in enumerate(comm.allgather_object(wanted)) if todo is not None
    }
    parts = _rows_of_the_best(comm, plan, keeper)
    members = [rank for rank, other in enumerate(plan.copies) if other == copy]
    todo = wanted_of.get(copy, np.empty(0, np.int64))
    low, high = (len(todo) * (members.index(comm.rank) + k) // len(members) for k in (0, 1))
    total = sum(len(todo) for todo in wanted_of.values())
    return parts + _scan_share(comm, plan, entries, spec, todo[low:high], _Progress(split, total), keeper)


def _rows_of_the_best(comm: Communicator, plan: Plan, keeper: Keeper | None) -> list[Part]:
    """The rows known of a keeper's copy: its own where it knows as much as any, else sent. *Collective.*"""
    keepers = [rank for rank, look in enumerate(plan.seen) if look is not None]
    behind = {plan.copies[rank] for rank in keepers if not plan.has_its_rows(rank)}
    copy = plan.copies[comm.rank]
    is_sender = keeper is not None and copy in behind and plan.best(copy) == comm.rank
    messages = list(_messages(keeper.known.all_parts())) if keeper is not None and is_sender else []
    received: list[Part] = []
    for i in range(max(comm.allgather_object(len(messages)))):
        sent = comm.allgather_object((copy, messages[i]) if i < len(messages) else None)
        received += [each[1] for each in sent if each is not None and each[0] == copy]
    if keeper is None:
        return []
    return keeper.known.all_parts() if plan.has_its_rows(comm.rank) else received


def _messages(parts: Sequence[Part]) -> list[Part]:
    return [
        (positions[start : start + ROWS_OF_A_MESSAGE], take(table, rows))
        for positions, table in parts
        for start in range(0, len(positions), ROWS_OF_A_MESSAGE)
        if len(rows := np.arange(start, min(start + ROWS_OF_A_MESSAGE, len(positions))))
    ]


def _scan_share(
    comm: Communicator,
    plan: Plan,
    entries: Sequence[Entry],
    spec: DataSpec,
    positions: Ints,
    progress: _Progress,
    keeper: Keeper | None,
) -> list[Part]:
    """Scan some entries, and hand what is found to the keepers now and then. *Collective.*"""
    found: queue.SimpleQueue[Part] = queue.SimpleQueue()
    chosen = [entries[i] for i in positions.tolist()]
    work = Background(lambda advance: _scan_into(found, chosen, positions, spec, advance))
    copy = plan.copies[comm.rank]
    collector = _Collector(keeper)
    for reports in meetings(comm, work, lambda: (copy, work.done, _drained(found))):
        progress.show(sum(done for _, done, _ in reports), comm.rank == 0)
        collector.add([part for where, _, part in reports if part is not None and where == copy])
    work.result()
    return collector.parts


def _scan_into(
    found: queue.SimpleQueue[Part],
    entries: Sequence[Entry],
    positions: Ints,
    spec: DataSpec,
    advance: Callable[[int], None],
) -> None:
    batch = []
    for i, image in enumerate(scan(entries, spec.names), start=1):
        batch.append(image)
        advance(1)
        if len(batch) == ENTRIES_OF_A_PART or i == len(entries):
            found.put((positions[i - len(batch) : i], tabulate(batch, spec.root)))
            batch = []


def _drained(found: queue.SimpleQueue[Part]) -> Part | None:
    parts = []
    while not found.empty():
        parts.append(found.get())
    return joined(parts) if parts else None


def joined(parts: Sequence[Part]) -> Part:
    """Several parts as one."""
    return np.concatenate([positions for positions, _ in parts]), join([table for _, table in parts])


class _Collector:
    """What a keeper has got, saved piece by piece: a scan that is killed goes on from there."""

    def __init__(self, keeper: Keeper | None) -> None:
        self.parts: list[Part] = []
        self._keeper = keeper
        self._saved = 0
        self._saved_at = time.monotonic()

    def add(self, parts: Sequence[Part]) -> None:
        """Take what was found since the last meeting."""
        if self._keeper is None:
            return
        self.parts += parts
        if len(self.parts) > self._saved and time.monotonic() > self._saved_at + SECONDS_BETWEEN_PIECES:
            self._keeper.cache.keep_piece(self._keeper.survey, *joined(self.parts[self._saved :]))
            self._saved, self._saved_at = len(self.parts), time.monotonic()


class _Progress:
    """Says now and then how far the scan is."""

    def __init__(self, split: str, total: int) -> None:
        self._split = split
        self._total = total
        self._begun = self._shown = time.monotonic()

    def show(self, done: int, aloud: bool) -> None:
        """Log a line, if the last one is old enough."""
        now = time.monotonic()
        if not aloud or done >= self._total or now < self._shown + SECONDS_BETWEEN_LINES:
            return
        self._shown = now
        rate = done / (now - self._begun)
        left = f"{_minutes((self._total - done) / rate)} left" if done else "none yet"
        log.info("scan of %s: %d of %d images, %.0f a second, %s", self._split, done, self._total, rate, left)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
