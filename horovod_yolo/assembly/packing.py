"""``horovod-yolo data pack``: all ranks write the shards of a data set, and one the index when all are whole.

The folder says how far it is: a shard with its piece of the index beside it is whole and stays; the
``data.yaml`` comes last. What was killed is started again by the same command, on any number of ranks.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from horovod_yolo.assembly.data import annotation_folder
from horovod_yolo.assembly.meetings import together_meanwhile
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.scanning import SECONDS_BETWEEN_LINES
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.config.class_map import ClassMap
from horovod_yolo.core.class_names import listed
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.listing import list_entries, require_mapped
from horovod_yolo.data.pack import SUFFIX, damage, index_of, open_index
from horovod_yolo.data.packing import (
    PIECE,
    Plan,
    data_yaml,
    make_plan,
    names_in_tar,
    piece_of,
    write_index,
    write_shard,
)
from horovod_yolo.data.shards import is_shard, shard_name
from horovod_yolo.data.spec import DataSpec, load_data_yaml
from horovod_yolo.distributed.agreement import on_rank_0, require_same, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.io.atomic import replacing
from horovod_yolo.planner.units import data_size
from horovod_yolo.process.garbage import uncollected

log = logging.getLogger(__name__)
GB = 1e9
DATA = "data.yaml"
_SPLITS = "(train|val|test)"
_SHARD = re.compile(rf"{_SPLITS}-\d{{5,}}\.tar")
_OURS = re.compile(rf"({_SHARD.pattern}{re.escape(PIECE)}|{_SPLITS}{re.escape(SUFFIX)})")
_REMAINS = re.compile(rf"\.({_SHARD.pattern}|{_OURS.pattern}|{re.escape(DATA)})\.[0-9a-f]{{8}}\.tmp")
ROOM = "make room in a folder that all hosts share, and start again: it goes on with what is whole"


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Flags of ``horovod-yolo data pack``."""

    data: str
    to: Path
    shard: str = "1GB"
    class_map: ClassMap = ()
    skip_bad_classes: bool = False
    cache_dir: str = ""


def pack_data(options: PackOptions, comm: Communicator) -> tuple[int, int]:
    """Pack all splits of a data set. *Collective.*

    Returns:
        How many images and shards there are.

    Raises:
        UserError: on all ranks alike.
    """
    limit = int(together(comm, lambda: data_size(options.shard, "--shard")))
    rules = LabelRules(options.class_map, options.skip_bad_classes)
    file = Path(data_here(options.data, comm))
    spec = together(comm, lambda: load_data_yaml(file, rules))
    together(comm, lambda: _require_loose(spec))
    on_rank_0(comm, lambda: _prepare(options.to))
    known = annotation_folder(options.cache_dir)
    annotations = {split: shared_annotations(spec, split, comm, known) for split in spec.splits}
    plans = together_meanwhile(comm, lambda _: _plans(spec, annotations, limit))
    keys = " ".join(plan.key for plan in plans)
    require_same(comm, keys, "the images", where=spec.file, fix="give every host the same files")
    if not on_rank_0(comm, lambda: _is_done(plans, options.to)):
        on_rank_0(comm, lambda: _require_room(plans, options.to))
        _write_shards(plans, options.to, comm)
        together_meanwhile(comm, lambda _: _finish(spec, plans, options.to) if comm.rank == 0 else None)
    return sum(len(plan.names) for plan in plans), sum(len(plan) for plan in plans)


def require_whole(annotations: Annotations, comm: Communicator) -> None:
    """Read all of a pack and compare it with what was written; nothing where there is none. *Collective.*

    Raises:
        UserError: it is damaged; all damage but the last is logged.
    """
    if "pack" not in annotations.file.about:
        return
    mine = range(comm.rank, len(annotations.file["shard_bytes"]), comm.size)

    def look(advance: Callable[[int], None]) -> list[str]:
        return [text for k in mine if (text := damage(annotations, k, advance))]

    found = comm.allgather_object(together_meanwhile(comm, look))
    bad = [text for texts in found for text in texts]
    if bad:
        if comm.rank == 0:
            for text in bad[:-1]:
                log.error("error: %s", text)
        raise UserError(bad[-1], fix="copy the shard again, or pack the data anew")


def _require_loose(spec: DataSpec) -> None:
    require_mapped(spec)
    if packed := [split for split in spec.splits if index_of(spec, split)]:
        what = f"{', '.join(packed)} is packed already"
        raise UserError(what, where=spec.file, fix="copy its folder, or pack the loose files")


def _prepare(folder: Path) -> None:
    """Make the folder; where it holds more than a pack, whole or not, nothing is touched."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(folder.iterdir())
        strangers = [path.name for path in there if not _is_ours(path)]
        if strangers:
            what = f"is not empty: {listed(strangers)}"
            raise UserError(what, where=folder, fix="give an empty or a new folder")
        for path in there:
            if _REMAINS.fullmatch(path.name):
                path.unlink(missing_ok=True)
    except OSError as error:
        what = f"cannot be written to: {error.strerror or error}"
        raise UserError(what, where=folder, fix="give another folder to --to") from error


def _is_ours(path: Path) -> bool:
    if _SHARD.fullmatch(path.name):
        return is_shard(path)
    if path.name == DATA:
        return path.with_name(f"train{SUFFIX}").exists()
    return bool(_OURS.fullmatch(path.name) or _REMAINS.fullmatch(path.name))


def _plans(spec: DataSpec, annotations: dict[str, Annotations], limit: int) -> list[Plan]:
    names = names_in_tar(annotations)
    plans = []
    for split, of_split in annotations.items():
        with uncollected():
            entries = list_entries(spec, split)
        plans.append(make_plan(spec, split, of_split, entries, names[split], limit))
    return plans


def _is_done(plans: Sequence[Plan], folder: Path) -> bool:
    """Whether the folder holds this very pack, whole.

    Raises:
        UserError: it holds another.
    """
    if not (folder / DATA).exists():
        return False
    keys = [open_index(folder / f"{plan.split}{SUFFIX}").about["pack"]["key"] for plan in plans]
    if keys != [plan.key for plan in plans]:
        fix = "give an empty or a new folder; runs that train on the old one are not disturbed"
        raise UserError("holds the pack of other data, or of another --shard", where=folder, fix=fix)
    log.info("%s holds this pack already", folder)
    _remove_pieces(plans, folder)
    return True


def _require_room(plans: Sequence[Plan], folder: Path) -> None:
    missing = sum(
        int(plan.sizes[plan.images(k)].sum())
        for plan in plans
        for k in range(len(plan))
        if piece_of(plan, k, folder) is None
    )
    free = shutil.disk_usage(folder).free
    if missing > free:
        what = f"{missing / GB:.2f} GB are to be written, and {free / GB:.2f} are free"
        raise UserError(what, where=folder, fix=ROOM)


def _write_shards(plans: Sequence[Plan], folder: Path, comm: Communicator) -> None:
    """Write what is missing, each rank every so-many-th shard. *Collective.*"""
    shards = [(plan, k) for plan in plans for k in range(len(plan))][comm.rank :: comm.size]

    def write(advance: Callable[[int], None]) -> None:
        for plan, k in shards:
            if piece_of(plan, k, folder) is not None:
                advance(int(plan.sizes[plan.images(k)].sum()))
                continue
            try:
                write_shard(plan, k, folder, advance)
            except OSError as error:
                what = f"cannot be written: {error.strerror or error}"
                raise UserError(what, where=folder / shard_name(plan.split, k), fix=ROOM) from error

    total, shown = sum(int(plan.sizes.sum()) for plan in plans), time.monotonic()

    def show(done: int) -> None:
        nonlocal shown
        if comm.rank == 0 and time.monotonic() > shown + SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            log.info("packed: %.2f of %.2f GB", done / GB, total / GB)

    together_meanwhile(comm, write, show)


def _finish(spec: DataSpec, plans: Sequence[Plan], folder: Path) -> None:
    """Write the indices of whole shards, then the ``data.yaml`` that names them."""
    try:
        for plan in plans:
            pieces = []
            for k in range(len(plan)):
                piece = piece_of(plan, k, folder)
                if piece is None:
                    fix = "give all hosts one shared folder"
                    raise UserError(f"{shard_name(plan.split, k)} is not here", where=folder, fix=fix)
                pieces.append(piece)
            write_index(plan, pieces, folder)
        with replacing(folder / DATA) as file:
            file.write(data_yaml(spec, {plan.split: f"{plan.split}{SUFFIX}" for plan in plans}))
        _remove_pieces(plans, folder)
    except OSError as error:
        what = f"cannot be written to: {error.strerror or error}"
        raise UserError(what, where=folder, fix=ROOM) from error


def _remove_pieces(plans: Sequence[Plan], folder: Path) -> None:
    """They are in the index now; shards beyond the last are another try's, cut otherwise."""
    kept = {shard_name(plan.split, k) for plan in plans for k in range(len(plan))}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(PIECE) or (_SHARD.fullmatch(path.name) and path.name not in kept):
            path.unlink(missing_ok=True)
