"""A run whose ranks torchrun starts anew where one is lost: it goes on by itself, from its last commit."""

from __future__ import annotations

import itertools
import logging
import socket
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.run_lock import RunLock
from horovod_yolo.checkpoint.resume import generations
from horovod_yolo.config.schema import STEPS_BETWEEN_ELASTIC_COMMITS
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.process import restarts

log = logging.getLogger(__name__)
_runs = itertools.count(1)  # of this process: a script may train several times


class EarlierRanks:
    """What ranks that torchrun has started before these ones tell of the run that they were at. *Collective.*

    Attributes:
        folder: of that run; None where they had none, or there were no such ranks.

    Raises:
        UserError: on all ranks alike: rank 0 is on a host that does not see the run's checkpoints.
    """

    def __init__(self, comm: Communicator) -> None:
        self._number = next(_runs) if launcher().for_torch else 0
        self.folder: Path | None = None
        if self._number:
            self.folder = _shared(restarts.noted_run(self._number), comm)

    def tell(self, folder: Path) -> None:
        """Leave word to those that come after these ranks."""
        try:
            if self._number:
                restarts.note_run(self._number, folder)
        except OSError as error:
            log.warning("ranks that torchrun starts anew will not know of this run: %s", error)


def _shared(noted: str, comm: Communicator) -> Path | None:
    """The folder that ranks have a note of: a host may have joined since. *Collective.*"""
    notes = [note for note in comm.allgather_object(noted) if note]
    if not notes:
        return None
    folder = Path(notes[0])
    begun = any(path.exists() for path in generations(folder / "weights"))
    seen = comm.allgather_object((begun, socket.gethostname()))
    if not seen[0][0] and any(begun for begun, _ in seen):
        where = next(host for begun, host in seen if begun)
        raise UserError(
            f"the checkpoints of this run are on {where}, and rank 0 is on {seen[0][1]} now",
            where=folder,
            fix="put run folders where all hosts see them (--project)",
        )
    return folder


def with_commits(given: dict[str, Any]) -> dict[str, Any]:
    """The flags of a new run, with commits within an epoch where ranks may be started anew."""
    return {"commit_every": STEPS_BETWEEN_ELASTIC_COMMITS, **given} if launcher().most_restarts else given


def say_restarts(every: int, folder: Path, lock: RunLock, comm: Communicator) -> None:
    """Where the launcher starts ranks anew, say what a lost one will cost. *Collective.*

    Args:
        every: steps between commits; 0 for none within an epoch.
        folder: of the run.
        lock: which rank 0 has taken there.
        comm: the ranks.
    """
    started = launcher()
    if not started.most_restarts or started.address is None:
        return
    told = comm.allgather_object((lock.is_seen(folder, comm), socket.gethostname()))
    blind = sorted({host for sees, host in told if not sees})
    if comm.rank:
        return
    several = len({host for _, host in told}) > 1
    commits = f"every {every} steps and " if every else ""
    end = f"; losing {started.address[0]}, where ranks meet, ends the job" if several else ""
    log.info("a lost rank costs the steps since the last commit (%safter each epoch)%s", commits, end)
    if blind:
        log.warning(
            "THE RUN FOLDER IS NOT SHARED BY ALL HOSTS: %s see%s none of it. Where rank 0 moves there, the "
            "run does not go on. Name a --project that all hosts share",
            ", ".join(blind[:8]),
            "s" if len(blind) == 1 else "",
        )
