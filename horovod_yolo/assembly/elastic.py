"""A run whose ranks come and go: what they share, and where each of them goes on from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from horovod_yolo.assembly.data import Data, KnownData
from horovod_yolo.assembly.run import Elastic, Run
from horovod_yolo.assembly.run_lock import RunLock
from horovod_yolo.assembly.settings import kept_settings
from horovod_yolo.checkpoint.state import copied
from horovod_yolo.config.schema import to_dict
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.io.private import own_folder

if TYPE_CHECKING:
    from horovod_yolo.distributed.elastic import Kept

log = logging.getLogger(__name__)


def elastic_run(start: Callable[[], Run], kept: Kept, comm: Communicator) -> Run:
    """The run that the ranks share, from the newest commit; at first, what ``start`` makes. *Collective.*

    Rank 0 may be another process than before, on another host: the folder is made there where it is missing.
    """
    content = kept.content or _first_content(start(), kept, comm)
    saved = content["state"]
    if saved:
        log.info("%d ranks go on from step %d of epoch %d", comm.size, saved["step"], saved["epoch"] + 1)
    if comm.rank == 0:
        own_folder(Path(content["folder"]) / "weights")

    def renew(**parts: Any) -> None:
        now = {**(kept.content or content), **parts}
        kept.keep(now, _order(now))

    def keep_data(data: Data) -> None:
        kept.local = data
        renew(data=data.digests)

    def keep(state: dict[str, Any]) -> None:
        renew(state=copied(state), config=state["config"])  # which may have passes that fit by now
        kept.check_hosts()

    kept.lock = kept.lock or RunLock(content["lock"])
    mine = kept.local if kept.local and kept.local.digests == content["data"] else None
    elastic = Elastic(content["ranks"], keep, KnownData(content["data"], mine, keep_data))
    config = kept_settings(content["config"], content["model"])
    return Run(config, Path(content["folder"]), saved, elastic, lock=kept.lock)


def _first_content(run: Run, kept: Kept, comm: Communicator) -> dict[str, Any]:
    content = {
        "lock": comm.broadcast_object(run.lock.token),
        "config": to_dict(run.config),
        "model": str(run.state["model_name"] if run.state else run.config.cfg),
        "folder": str(run.folder),
        "ranks": comm.size,
        "state": run.state,
        "data": None,
    }
    kept.keep(content, _order(content))
    return content


def _order(content: dict[str, Any]) -> tuple[int, int, int]:
    """How new it is. Of the same step, what knows the data is newer: or only some ranks would scan it."""
    state = content["state"] or {"step": 0, "epoch": 0}
    return state["step"], state["epoch"], int(content["data"] is not None)
