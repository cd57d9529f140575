"""From ``data.yaml`` to annotations that all ranks share; no rank scans more than its share.

One rank of each host, its keeper, lists the files, asks the file system about them and holds the host's
cache. What no cache knows is scanned by all ranks. The files' times and inodes tell hosts that see the same
files from hosts that have copies: each copy is read by the ranks that see it. Then contents are compared.
"""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from horovod_yolo.assembly.hand_on import hand_on, host_id
from horovod_yolo.assembly.meetings import on_keepers, together_meanwhile
from horovod_yolo.assembly.scanning import Keeper, Part, Plan, Seen, scan_together
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Ints
from horovod_yolo.data.annotation_cache import AnnotationCache, in_order
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.formats import Entry, Problem
from horovod_yolo.data.listing import list_entries, listing_of, survey
from horovod_yolo.data.pack import as_asked, index_of, open_index, require_shards
from horovod_yolo.data.scan import problems_of, require_useful
from horovod_yolo.data.soundness import (
    Counts,
    Found,
    Tally,
    count_objects,
    pose_remark,
    remarks,
    require_sound,
    summary,
)
from horovod_yolo.data.spec import DataSpec
from horovod_yolo.data.table import Table
from horovod_yolo.distributed.agreement import on_rank_0, require_same, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.io.columns import ColumnFile
from horovod_yolo.process.garbage import free, uncollected

log = logging.getLogger(__name__)
SAME_FILES = "give every host the same files"


def shared_annotations(
    spec: DataSpec,
    split: str,
    comm: Communicator,
    folder: Path | None,
    note: Callable[[Found], None] | None = None,
) -> Annotations:
    """The annotations of a split: from the cache, or scanned by all ranks together. *Collective.*

    Problems with single images or rows are logged (by rank 0) and left out; labels that as a whole cannot be
    what the user means end the job.

    Args:
        spec: of the data set.
        split: "train", "val" or "test".
        comm: the ranks.
        folder: of this host's cache; None for none.
        note: on rank 0, is told of all that was found, also where it ends the job.

    Raises:
        UserError: on all ranks alike, also where only one rank met the mistake.
    """
    index = together(comm, lambda: index_of(spec, split))
    if index is not None:
        return _packed_annotations(spec, split, index, comm, folder, note)
    keeper = _look(spec, split, comm, AnnotationCache(folder))
    plan = _plan(comm, keeper, f"the {split} images or labels", spec.file)
    if any(seen.whole for seen in plan.seen if seen) and not any(seen.missing for seen in plan.seen if seen):
        file = keeper.known.whole if keeper else None
    else:
        file = _scan(spec, split, comm, plan, keeper)
    listed = keeper.survey.entries[0].problems if keeper else ()
    contents = comm.allgather_object(str(file.about["content"]) if file else None)
    _require_copies(plan, contents, f"the {split} images or labels", spec.file)
    annotations = _on_all_ranks(spec, split, file, listed, comm, folder, note)
    if keeper is not None:
        free(keeper.survey.entries)
    return annotations


def _packed_annotations(
    spec: DataSpec,
    split: str,
    index: Path,
    comm: Communicator,
    folder: Path | None,
    note: Callable[[Found], None] | None,
) -> Annotations:
    """Those of a pack, which needs no scan. *Collective.*"""

    def look(advance: Callable[[int], None]) -> tuple[str, ColumnFile, list[Problem]]:
        file = open_index(index)
        require_shards(file, spec.root, advance)
        return file.key, *as_asked(file, spec, split)

    key, file, listed = on_keepers(comm, look) or ("", None, [])
    keys = [(host, key) for host, key in comm.allgather_object((socket.gethostname(), key)) if key]
    for host, other in keys:
        if other != keys[0][1]:
            what = f"the packs of {split} differ between hosts, {keys[0][0]} and {host}"
            raise UserError(what, where=index, fix=SAME_FILES)
    return _on_all_ranks(spec, split, file, listed, comm, folder, note)


def _on_all_ranks(
    spec: DataSpec,
    split: str,
    file: ColumnFile | None,
    listed: Sequence[Problem],
    comm: Communicator,
    folder: Path | None,
    note: Callable[[Found], None] | None,
) -> Annotations:
    """The annotations that keepers have, said and found sound. *Collective.*"""
    file = hand_on(file, comm, folder)
    assert file is not None, "rank 0 is a keeper"
    annotations = Annotations(spec.root, file)
    require_same(comm, annotations.digest, f"the {split} annotations", where=spec.file, fix=SAME_FILES)
    on_rank_0(comm, lambda: _say_and_require(spec, split, annotations, listed, note))
    return annotations


def _look(spec: DataSpec, split: str, comm: Communicator, cache: AnnotationCache) -> Keeper | None:
    """What there is and what is known of it, on the keepers. *Collective.*"""

    def look(advance: Callable[[int], None]) -> Keeper:
        with uncollected():
            entries = list_entries(spec, split)
        surveyed = survey(entries, spec, split, advance)
        return Keeper(surveyed, cache.find(surveyed, spec.root, split), cache)

    return on_keepers(comm, look)


def _plan(comm: Communicator, keeper: Keeper | None, what: str, where: Path) -> Plan:
    """Who sees what. *Collective.*"""
    seen = None
    if keeper is not None:
        rows = keeper.known.rows
        known = hashlib.sha256(np.packbits(rows).tobytes()).hexdigest()
        missing = int((~rows).sum())
        whole = keeper.known.whole is not None
        seen = Seen(socket.gethostname(), keeper.survey.sizes, keeper.survey.copy, known, missing, whole)
    everyone = comm.allgather_object((host_id(), seen))
    plan = Plan.of([host for host, _ in everyone], [seen for _, seen in everyone])
    _require_copies(plan, [seen and seen.sizes for seen in plan.seen], what, where)
    return plan


def _require_copies(plan: Plan, hashes: Sequence[str | None], what: str, where: Path) -> None:
    """Raise `UserError`, on all ranks, where the keepers' hashes differ."""
    stated = [(seen.name, said) for seen, said in zip(plan.seen, hashes, strict=True) if seen and said]
    for name, said in stated:
        if said != stated[0][1]:
            words = f"{what} differ between hosts, {stated[0][0]} and {name}"
            raise UserError(words, where=where, fix=SAME_FILES)


def _scan(
    spec: DataSpec, split: str, comm: Communicator, plan: Plan, keeper: Keeper | None
) -> ColumnFile | None:
    """Scan what is missing; the new annotations, on the keepers. *Collective.*"""
    entries, listing = _listed(spec, split, comm, keeper)
    changing = f"the {split} images change while they are listed: they"
    require_same(comm, listing, changing, where=spec.file, fix=SAME_FILES)
    parts = scan_together(comm, plan, entries, spec, split, keeper)
    if keeper is None:
        free(entries)

    def keep(_advance: Callable[[int], None]) -> ColumnFile | None:
        return _kept(spec, split, keeper, parts) if keeper else None

    return together_meanwhile(comm, keep)


def _listed(spec: DataSpec, split: str, comm: Communicator, keeper: Keeper | None) -> tuple[list[Entry], str]:
    """The entries and the hash of them, on all ranks. *Collective.*"""

    def look(_advance: Callable[[int], None]) -> tuple[list[Entry], str]:
        if keeper is not None:
            return keeper.survey.entries, keeper.survey.listing
        with uncollected():
            entries = list_entries(spec, split)
        return entries, listing_of(entries, spec, split)

    return together_meanwhile(comm, look)


def _kept(spec: DataSpec, split: str, keeper: Keeper, parts: Sequence[Part]) -> ColumnFile:
    table = in_order(parts, len(keeper.survey.entries))
    paths = [entry.image for entry in keeper.survey.entries]
    try:
        require_useful(table, paths, spec.root)
    except UserError as error:
        tally = _tally(keeper.survey.entries[0].problems, table, spec.root)
        counts = _counts(spec, table, table["object_end"][table["usable"]])
        require_sound(spec, split, counts, tally)  # which says more, where it can
        first = (*tally.left_out, *tally.notes)[:1]
        shown = f" The first: {first[0]}" if first else ""
        raise UserError(f"{error}.{shown}") from None
    return keeper.cache.keep(keeper.survey, spec.root, split, spec.names, table)


def _say_and_require(
    spec: DataSpec,
    split: str,
    annotations: Annotations,
    listed: Sequence[Problem],
    note: Callable[[Found], None] | None,
) -> None:
    """Log what was found and left out; raise where the labels as a whole are a mistake."""
    columns = annotations.file.columns
    tally = _tally(listed, columns, annotations.root)
    counts = _counts(spec, columns, columns["object_end"])
    if note is not None:
        problems = (*listed, *problems_of(columns, annotations.root))
        note(Found(split, len(columns["usable"]), counts, problems))
    log.info("%s", summary(split, counts))
    for line in (*pose_remark(tally, counts.boxes), *remarks(tally)):
        log.warning("%s", line)
    require_sound(spec, split, counts, tally)


def _counts(spec: DataSpec, table: Table, ends: Ints) -> Counts:
    """How much there is; ``ends`` are those of the usable images."""
    # What is used could be read, if it was there.
    has_labels = np.any(table["label_content"][table["usable"]], axis=1)
    return count_objects(len(spec.names), ends, table["class_id"], table["crowd"], has_labels)


def _tally(listed: Sequence[Problem], table: Table, root: Path) -> Tally:
    """The problems of the listing, then those of the scan."""
    return Tally.of(chain(listed, problems_of(table, root)))
