"""From ``data.yaml`` to an index that all ranks share; no rank scans more than its part."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from horovod_yolo.data import cache
from horovod_yolo.data.index import Index, Problem, assemble, content_key, list_entries, scan
from horovod_yolo.data.spec import DataSpec
from horovod_yolo.distributed.comm import Communicator, agree
from horovod_yolo.errors import UserError

log = logging.getLogger(__name__)
MOST_PROBLEMS_SHOWN = 20


def shared_index(spec: DataSpec, split: str, comm: Communicator, cache_dir: Path) -> Index:
    """The index of a split: from the cache, or scanned by all ranks together. *Collective.*

    Problems with single images or rows are logged (by rank 0) and left out.

    Raises:
        UserError: on all ranks alike, also where only one rank met the mistake.
    """
    try:
        entries, problem = list_entries(spec, split), None
    except UserError as error:
        entries, problem = [], str(error)
    raise_together(comm, problem)
    what = f"the {split} images or labels"
    require_same(comm, content_key(entries, spec, split, times=False), what, spec.file)
    key = content_key(entries, spec, split)  # of this host's copy; caches are each host's own
    cached = cache.load_index(cache_dir, key, spec.root)
    if all(comm.allgather_object(cached is not None)) and cached is not None:
        index, problems = cached
        require_same(comm, index.digest, what, spec.file)
    else:
        low, high = (len(entries) * r // comm.size for r in (comm.rank, comm.rank + 1))
        parts = comm.allgather_object(scan(entries[low:high], spec.names, spec.root))
        problems = [problem for _, found in parts for problem in found]
        try:
            index = assemble(spec.root, spec.names, [record for records, _ in parts for record in records])
        except UserError as error:
            shown = f" The first: {problems[0]}" if problems else ""
            raise UserError(str(error) + "." + shown) from None
        if comm.local_rank == 0:
            cache.save_index(cache_dir, key, index, problems)
    if comm.rank == 0:
        _report(split, index, problems)
    return index


def raise_together(comm: Communicator, problem: str | None) -> None:
    """Raise `UserError` on all ranks where any rank has a problem. *Collective.*"""
    agreed = agree(comm, problem)
    if agreed is not None:
        raise UserError(agreed)


def require_same(comm: Communicator, value: str, what: str, where: Path) -> None:
    """Raise `UserError` on all ranks where a value differs between them. *Collective.*"""
    counts = Counter(comm.allgather_object(value))
    if len(counts) > 1:
        raise UserError(
            f"{what} differ between ranks: {len(counts)} versions",
            where=where,
            fix="give every host the same files",
        )


def _report(split: str, index: Index, problems: list[Problem]) -> None:
    boxes = sum(len(record.classes) for record in index.records)
    empty = sum(1 for record in index.records if len(record.classes) == 0)
    log.info("%s: %d images, %d boxes, %d images without", split, len(index.records), boxes, empty)
    for problem in problems[:MOST_PROBLEMS_SHOWN]:
        log.warning("left out: %s", problem)
    if len(problems) > MOST_PROBLEMS_SHOWN:
        log.warning("left out: %d more like these", len(problems) - MOST_PROBLEMS_SHOWN)
