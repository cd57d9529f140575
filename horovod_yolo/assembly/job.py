"""The door of a process into a job: it joins as one rank, does its part, and leaves.

A command and a user's script come in by the same door. Both get their share of the cores, messages of their
rank, and beside them, where there are other ranks, a guard that ends a rank that hangs. Where one of several
ranks fails, it says who it is and leaves without another collective call, upon which the launcher ends the
job.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from horovod_yolo.assembly.ending import (
    AGREED,
    DONE,
    MISTAKE,
    advice,
    complain,
    end_as_before,
    end_at_once,
    leave_alone,
    leave_on_request,
    refused,
    say_end,
)
from horovod_yolo.core.errors import TakenError, UserError
from horovod_yolo.distributed.backends import connect, refuse_stranger
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.distributed.launchers.launcher import Launcher
from horovod_yolo.process import logs
from horovod_yolo.process.allocator import keep_freed_memory
from horovod_yolo.process.cores import Cores, own_cores, threads
from horovod_yolo.process.environment import check_numbers
from horovod_yolo.process.output import outlive_lost_output
from horovod_yolo.process.signals import listening
from horovod_yolo.process.stop import StopRequest

if TYPE_CHECKING:
    from horovod_yolo.distributed.communicator import Communicator

log = logging.getLogger("horovod_yolo")
SECONDS_OF_SILENCE = "60"  # after which a rank that shows no life counts as hung


def on_ranks_until_stopped(parse: Callable[[], Any], job: Callable[[Any, Any, StopRequest], None]) -> int:
    """`on_ranks` for a job that ends early when it is asked to. Call it from the main thread."""
    end_as_before()
    stop = StopRequest(lambda words: leave_on_request(words, certain=stop.certain))
    with listening(stop):
        return on_ranks(parse, lambda comm, parsed: job(comm, parsed, stop))


def on_ranks(parse: Callable[[], Any], job: Callable[[Any, Any], None]) -> int:
    """Exit code of a command that runs on all ranks together.

    What all ranks raise together, rank 0 says, and all leave with the same code.
    """
    end_as_before()
    from horovod_yolo.distributed.agreement import together

    try:
        comm = join()
    except UserError as error:
        return refused(error, launcher().local_rank or 0)
    code = part_of(comm, lambda: job(comm, together(comm, parse)))
    comm.close()
    return code


def join(*, as_script: bool = False) -> Communicator:
    """Become a rank of the job this process was launched into, or a job of one. *Collective.*

    Args:
        as_script: the process is the user's: alone, its threads stay as they are, and its logging always.

    Raises:
        UserError: the launch or the environment is not as it must be; on all ranks of a host alike.
    """
    launched = launcher()
    share = not as_script or launched.size > 1
    get_ready(launched, share=share)
    comm = connect()
    logs.set_up(comm.rank, comm.size, as_script=as_script)
    if share:
        get_to_know(comm)
    return comm


def get_ready(launched: Launcher, *, share: bool = True) -> None:
    """Prepare this process for its part, before it knows of other ranks.

    Args:
        launched: who started it.
        share: whether the cores are shared with the ranks of this host.

    Raises:
        UserError: the launch or the environment is not as it must be.
    """
    outlive_lost_output()
    if share:
        share_cores()
        keep_freed_memory()
    refuse_stranger(launched)
    check_numbers()
    _start_guard(launched)


def part_of(comm: Communicator, work: Callable[[], None], passing: tuple[type[Exception], ...] = ()) -> int:
    """Exit code of this rank's part of a job; what is ``passing`` is the caller's."""
    code = DONE
    try:
        work()
    except passing:
        raise
    except AGREED as error:
        code = say_end(comm, error)
    except Exception as error:  # the last resort of a rank: name it, then leave
        if comm.size == 1 and isinstance(error, TakenError):
            complain(str(error))
            return MISTAKE
        if comm.size == 1:
            if words := advice(error):
                print(words, file=sys.stderr)
            raise
        leave_alone(comm, error)
    comm.allgather_object(code)  # nobody leaves, and ends the job, before rank 0 has spoken
    return code


class Script:
    """A user's script as a rank of a job. What it does not catch ends the job, as it ends a command."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._agreed: Exception | None = None  # the last that all ranks have raised together

    @contextmanager
    def on_ranks(self) -> Iterator[Communicator]:
        """Inside, collective calls are made. What they raise on all ranks alike, the script may catch.

        Of several ranks one that fails by itself leaves here: the others wait for it.
        """
        try:
            yield self._comm
        except AGREED as error:
            self._agreed = error
            raise
        except Exception as error:
            if self._comm.size > 1:
                leave_alone(self._comm, error)
            raise

    def end(self, code: int) -> None:
        """Leave the job. *Collective:* nobody leaves, and ends it, before rank 0 has spoken."""
        self._comm.allgather_object(code)
        self._comm.close()

    def uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Of several ranks, for ``sys.excepthook``: end this one, and with it the job."""
        if error is self._agreed:
            code = say_end(self._comm, self._agreed)
            self._comm.allgather_object(code)  # as in `part_of`
            end_at_once(code)
        if isinstance(error, Exception):
            leave_alone(self._comm, error)
        sys.__excepthook__(kind, error, trace)


@cache
def join_as_script() -> Script:
    """`join`, once: Horovod leaves the job when the process ends and cannot join it again. *Collective.*

    Raises:
        UserError: as `join`, or ranks may come and go.
    """
    if launcher().restarts_ranks:
        raise UserError(
            "horovodrun's elastic launch of a script that calls YOLO",
            fix="only train.py goes on when ranks come and go; launch the script with -H host1:4",
        )
    end_as_before()
    script = Script(comm := join(as_script=True))
    if comm.size > 1:
        sys.excepthook = script.uncaught
    return script


def require_fitting_launch(elastic: bool) -> None:
    """Raise where launcher and flags do not fit: not all ranks would know that the world may change.

    Args:
        elastic: whether ``--elastic`` was given.

    Raises:
        UserError: says what to change.
    """
    launched = launcher()
    if elastic and launched.for_torch:
        raise UserError(
            "--elastic is for horovodrun; torchrun starts all ranks anew when one is lost",
            fix="leave it out and use torchrun --nnodes 2:4 --max-restarts 3 ...",
        )
    if elastic and not launched.restarts_ranks:
        raise UserError(
            "--elastic without horovodrun's elastic launch over Gloo",
            fix="start it with horovod-yolo launch --elastic, or leave --elastic out",
        )
    if launched.restarts_ranks and not elastic:
        raise UserError(
            "horovodrun's elastic launch without --elastic",
            fix="add --elastic, or launch with -H host1:4",
        )


def log_to_files(comm: Communicator, folder: str, *, as_script: bool = False) -> None:
    """Write each rank's messages to a file of its own from here on; empty for none. *Collective.*"""
    from horovod_yolo.distributed.agreement import together

    if folder:
        together(comm, lambda: logs.set_up(comm.rank, comm.size, folder, as_script=as_script))
        started = launcher()
        log.debug("started by %s%s", started.name, f", job {started.job_id}" if started.job_id else "")


def _start_guard(launched: Launcher) -> None:
    """Where there are other ranks, let a process beside this one end it when it hangs: they would wait."""
    from horovod_yolo.distributed import heartbeat

    if launched.size > 1:
        os.environ[heartbeat.VARIABLE] = os.environ.get(heartbeat.VARIABLE) or SECONDS_OF_SILENCE
        heartbeat.start_guard(launched.rank, launched.address, listens=launched.keeps_store)


def get_to_know(comm: Communicator) -> None:
    """Share the cores, and tell which rank is where: Horovod's messages have numbers only. *Collective.*"""
    here = socket.gethostname()
    everyone = comm.allgather_object((here, own_cores()))
    share_cores([cores for host, cores in everyone if host == here])
    hosts: dict[str, list[str]] = {}
    for rank, (host, _) in enumerate(everyone):
        hosts.setdefault(host, []).append(str(rank))
    if comm.rank == 0 and len(hosts) > 1:
        log.info("ranks: %s", "; ".join(f"{', '.join(ranks)} on {host}" for host, ranks in hosts.items()))


def share_cores(neighbours: Sequence[Cores] = ()) -> None:
    """Take this rank's share of the host's cores, unless the user or the launcher has set the threads.

    Args:
        neighbours: what the ranks of this host have. Before that is known, all have the same as this one.
    """
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        mine = own_cores()
        torch.set_num_threads(threads(mine, neighbours or [mine] * (launcher().local_size or 1)))
