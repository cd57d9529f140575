"""A search on the ranks of one ``mpirun``, in groups: each does trials of its own."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from horovod_yolo.assembly.ending import (
    MISTAKE,
    end_at_once,
    leave_on_request,
    leave_with_group,
    refused,
)
from horovod_yolo.assembly.job import get_ready, part_of, share_cores
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.search import Search, TuneOptions, open_search
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.distributed.rank_groups import RankGroup, join_group
from horovod_yolo.process import logs
from horovod_yolo.process.cores import own_cores
from horovod_yolo.process.signals import listening
from horovod_yolo.process.stop import StopRequest

log = logging.getLogger(__name__)


def on_groups(parse: Callable[[], TuneOptions], job: Callable[[RankGroup, Search, StopRequest], None]) -> int:
    """Exit code of a search on groups of ranks. Call it from the main thread.

    A group that loses a rank leaves, and its trial is queued again by the next group that looks.

    Args:
        parse: gives the options, the same on all ranks.
        job: a group's part.
    """
    stop = StopRequest(lambda words: leave_on_request(words, certain=stop.certain))
    with listening(stop):
        try:
            options = parse()
            get_ready(launcher())
            group = join_group(launcher(), options.ranks_per_trial, leave_with_group)
        except UserError as error:
            return refused(error, launcher().local_rank or 0)
        _get_to_know(group, options)
        code = part_of(group.comm, lambda: job(group, _open(group, options), stop))
        group.close()
        if group.outlives_others:  # the end of the interpreter would wait for ranks that are lost
            end_at_once(code)
        return code


def _get_to_know(group: RankGroup, options: TuneOptions) -> None:
    """Set up messages, and share each host's cores among the ranks of all groups. *Collective* over all."""
    comm, folder = group.comm, str(options.flags.get("log_dir", ""))
    logs.set_up(comm.rank, comm.size, f"{folder}/group-{group.number}" if folder else "")
    here = socket.gethostname()
    everyone = group.world.allgather((here, own_cores()))
    share_cores([cores for host, cores in everyone if host == here])
    if group.number == 0 and comm.rank == 0:
        end = "the other groups go on" if group.outlives_others else "all end, and tune --resume goes on"
        log.info("%d trials at a time, %d ranks each; where a rank is lost, %s", group.count, comm.size, end)


def _open(group: RankGroup, options: TuneOptions) -> Search:
    """The search, which the first group makes or finds. *Collective* over all ranks."""
    found: tuple[Search | None, UserError | None] = (None, None)
    if group.number == 0:
        try:
            found = open_search(options, group.comm), None
        except UserError as error:
            found = None, error
    found = group.world.bcast(found, root=0)
    search, problem = found
    if problem is not None:
        if group.number:
            end_at_once(MISTAKE)  # the first group says why
        raise problem
    if group.number and options.flags.get("data"):
        data_here(str(options.flags["data"]), group.comm)  # on hosts of this group only
    assert search is not None
    return search
