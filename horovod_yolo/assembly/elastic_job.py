"""The door into a job whose ranks come and go: a process enters anew with every change of the world."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from horovod_yolo.assembly.ending import FAULT, STOPPED, end_at_once, leave_on_request, refused
from horovod_yolo.assembly.job import get_to_know, part_of, share_cores
from horovod_yolo.core.errors import MemoryShortError, NonFiniteError, UserError
from horovod_yolo.distributed.backends import connect
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.process import logs
from horovod_yolo.process.environment import check_numbers
from horovod_yolo.process.output import outlive_lost_output
from horovod_yolo.process.signals import listening
from horovod_yolo.process.stop import StopRequest


def on_elastic_ranks(parse: Callable[[], Any], job: Callable[[Any, Any, StopRequest, Any], None]) -> int:
    """Exit code of something that runs on ranks that come and go, until it is asked to stop.

    As `on_ranks`, but ``job(comm, given, stop, kept)`` begins anew after every change of the world, and a
    rank talks to the others only once it has the newest state: they may be in the middle of the run.
    """
    from horovod_yolo.distributed import elastic, heartbeat

    outlive_lost_output()
    share_cores()
    launched = launcher()
    logs.set_up(launched.rank, launched.size)
    try:
        check_numbers()
        given = parse()
    except UserError as error:
        return refused(error, launched.rank)
    pulse = heartbeat.start_guard(launched.rank, launched.address)
    stop = StopRequest(leave_on_request)
    kept = elastic.Kept(
        given["elastic_wait"],
        on_wait=lambda content: _save_while_waiting(content, stop),
        on_give_up=lambda content: _give_up(content, pulse.rank),
        on_stuck=lambda seconds: _end_stuck(seconds, pulse.rank),
    )

    def part() -> int:
        comm = connect()
        pulse.rank = comm.rank
        logs.set_up(comm.rank, comm.size)
        get_to_know(comm)
        work = partial(_saved_at_a_mistake, comm, kept, lambda: job(comm, given, stop, kept))
        return part_of(comm, work, passing=elastic.WORLD_CHANGED)

    try:
        with listening(stop):
            elastic.join()
            return elastic.run(part, kept)
    except elastic.RemovedError as error:
        print(f"{logs.rank_here(pulse.rank)}: {error}", file=sys.stderr, flush=True)
        return FAULT  # not that of a job that stopped: the others go on


def _saved_at_a_mistake(comm: Any, kept: Any, work: Callable[[], None]) -> None:
    """Do ``work``; where all ranks end it together, bring the last commit to the disk before they leave."""
    from horovod_yolo.checkpoint.rescue import save_at_last

    try:
        work()
    except (UserError, NonFiniteError, MemoryShortError):
        if comm.rank == 0 and kept.content and kept.content["state"]:
            save_at_last(Path(kept.content["folder"]), kept.content["state"])
        raise


def _save_while_waiting(content: dict[str, Any], stop: StopRequest) -> None:
    """Bring the last commit to the disk while there are too few ranks to go on."""
    from horovod_yolo.checkpoint.rescue import save_once

    if content["state"] is not None:
        save_once(Path(content["folder"]), content["state"])
        stop.alone_from_here(f"while it waited for ranks; go on with --resume {content['folder']}")


def _give_up(content: dict[str, Any] | None, rank: int) -> NoReturn:
    """End this process after a wait for more ranks that lasted too long."""
    from horovod_yolo.checkpoint.rescue import save_at_last

    state = content["state"] if content else None
    saved = save_at_last(Path(content["folder"]), state) if content and state else None
    step = f"checkpoint {saved} of step {state['step']}" if state and saved else "nothing was saved"
    words = f"waited for enough ranks, in vain: {step}. Go on with --resume"
    print(f"{logs.rank_here(rank)} {words}", file=sys.stderr)
    end_at_once(STOPPED if saved else FAULT)


def _end_stuck(seconds: float, rank: int) -> NoReturn:
    """End this process, whose main thread does not come back to the other ranks."""
    words = f"has not noticed for {seconds:.0f} s that the others left: it is stuck. It is ended"
    print(f"{logs.rank_here(rank)} {words}", file=sys.stderr)
    end_at_once(FAULT)
