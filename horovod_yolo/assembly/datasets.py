"""From ``data.yaml`` to an index that all ranks share; no rank scans more than its part."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import LostImage
from horovod_yolo.data import cache
from horovod_yolo.data.index import (
    Entry,
    Fingerprint,
    Index,
    Problem,
    assemble,
    fingerprint,
    list_entries,
    relative_name,
    scan,
)
from horovod_yolo.data.spec import DataSpec
from horovod_yolo.distributed.agreement import require_same, together
from horovod_yolo.distributed.communicator import Communicator

log = logging.getLogger(__name__)
MOST_PROBLEMS_SHOWN = 20
LARGEST_LOST_SHARE = 10  # a tenth of the images may vanish while the job runs
MOST_NAMED = 3
SAME_FILES = "give every host the same files"


def shared_index(spec: DataSpec, split: str, comm: Communicator, cache_dir: Path) -> Index:
    """The index of a split: from the cache, or scanned by all ranks together. *Collective.*

    One rank of each host lists the files and looks at their sizes and times. All ranks list them, and share
    the scan, only where some host has no index of just these files in its cache.

    Problems with single images or rows are logged (by rank 0) and left out.

    Raises:
        UserError: on all ranks alike, also where only one rank met the mistake.
    """
    what = f"the {split} images or labels"
    entries, key = _look(spec, split, comm, what)
    cached = cache.load_index(cache_dir, key, spec.root)
    if all(comm.allgather_object(cached is not None)) and cached is not None:
        index, problems = cached
        require_same(comm, index.digest, what, where=spec.file, fix=SAME_FILES)
    else:
        index, problems = _scan_together(spec, split, comm, entries)
        if comm.local_rank == 0:
            cache.save_index(cache_dir, key, index, problems)
    if comm.rank == 0:
        _report(split, index, problems)
    return index


class _Look(NamedTuple):
    """What one rank of a host found there."""

    host: str
    fingerprint: Fingerprint
    problem: str = ""


def _look(spec: DataSpec, split: str, comm: Communicator, what: str) -> tuple[list[Entry] | None, str]:
    """The entries, on one rank of each host, and the key of this host's copy in the cache. *Collective.*"""
    entries, mine, host = None, None, socket.gethostname()
    if comm.local_rank == 0:
        try:
            entries = list_entries(spec, split)
            mine = _Look(host, fingerprint(entries, spec, split))
        except UserError as error:
            mine = _Look(host, Fingerprint("", ""), str(error))
    looks = [look for look in comm.allgather_object(mine) if look is not None]
    bad = [look for look in looks if look.problem]
    if bad:
        where = f" (on {', '.join(look.host for look in bad[:MOST_NAMED])})" if len(bad) < len(looks) else ""
        raise UserError(bad[0].problem + where)
    for other in looks:
        if other.fingerprint.content != looks[0].fingerprint.content:
            differ = f"{what} differ between hosts, {looks[0].host} and {other.host}"
            raise UserError(differ, where=spec.file, fix=SAME_FILES)
    keys = {look.fingerprint.exact for look in looks if look.host == host}
    # Where hosts share a name, nobody can tell whose look is whose: no key, no shortcut.
    return entries, mine.fingerprint.exact if mine else keys.pop() if len(keys) == 1 else ""


def _scan_together(
    spec: DataSpec, split: str, comm: Communicator, entries: list[Entry] | None
) -> tuple[Index, list[Problem]]:
    """Each rank opens its part of the images. *Collective.*"""
    listed = together(comm, lambda: list_entries(spec, split) if entries is None else entries)
    names = "\0".join(relative_name(entry.image, spec.root) for entry in listed)
    digest = hashlib.sha256(os.fsencode(names)).hexdigest()
    changing = f"the {split} images change while they are listed: they"
    require_same(comm, digest, changing, where=spec.file, fix=SAME_FILES)
    low, high = (len(listed) * r // comm.size for r in (comm.rank, comm.rank + 1))
    parts = comm.allgather_object(scan(listed[low:high], spec.names, spec.root))
    problems = [problem for _, found in parts for problem in found]
    try:
        index = assemble(spec.root, spec.names, [record for records, _ in parts for record in records])
    except UserError as error:
        shown = f" The first: {problems[0]}" if problems else ""
        raise UserError(str(error) + "." + shown) from None
    return index, problems


def require_images(comm: Communicator, lost: int, of: int, seen: Iterable[LostImage], where: object) -> None:
    """Raise `UserError` on all ranks where more than a tenth of a pass's images is lost.

    *Collective* where it raises: ``lost`` and ``of`` must be the same on all ranks. ``seen`` are this rank's.
    """
    if lost <= max(1, of // LARGEST_LOST_SHARE):
        return
    everyone = comm.allgather_object(list(islice(seen, MOST_NAMED)))
    named = dict.fromkeys(f"{image.path} ({image.reason})" for images in everyone for image in images)
    raise UserError(
        f"{lost} of {of} images cannot be read any more, such as {', '.join([*named][:MOST_NAMED])}",
        where=where,
        fix="is the data set still mounted and whole? Mend it, then go on with --resume",
    )


def _report(split: str, index: Index, problems: list[Problem]) -> None:
    boxes = sum(len(record.classes) for record in index.records)
    empty = sum(1 for record in index.records if len(record.classes) == 0)
    log.info("%s: %d images, %d boxes, %d images without", split, len(index.records), boxes, empty)
    for problem in problems[:MOST_PROBLEMS_SHOWN]:
        log.warning("left out: %s", problem)
    if len(problems) > MOST_PROBLEMS_SHOWN:
        log.warning("left out: %d more like these", len(problems) - MOST_PROBLEMS_SHOWN)
