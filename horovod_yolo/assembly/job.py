"""A process as one rank of a job: it joins, does its part, says what went wrong, and leaves.

Exit codes: 0 done, 2 the user's mistake (one line, no traceback), 1 a fault of ours, 3 stopped on request
with a checkpoint written: put me back into the queue.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, NoReturn

from horovod_yolo.core.errors import DataWorkerError, NonFiniteError, StoppedError, UnwrittenError, UserError
from horovod_yolo.distributed.backends import connect, refuse_stranger
from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.distributed.launchers.launcher import Launcher
from horovod_yolo.process import logs
from horovod_yolo.process.cores import Cores, own_cores, threads
from horovod_yolo.process.environment import check_numbers
from horovod_yolo.process.output import outlive_lost_output
from horovod_yolo.process.signals import listening
from horovod_yolo.process.stop import StopRequest

log = logging.getLogger("horovod_yolo")
SECONDS_OF_SILENCE = "60"  # after which a rank that shows no life counts as hung
DONE, FAULT, MISTAKE, STOPPED = 0, 1, 2, 3
_ending = threading.Lock()


def on_ranks_until_stopped(parse: Callable[[], Any], job: Callable[[Any, Any, StopRequest], None]) -> int:
    """`on_ranks` for a job that ends early when it is asked to. Call it from the main thread."""
    stop = StopRequest(_leave_on_request)
    with listening(stop):
        return on_ranks(parse, lambda comm, parsed: job(comm, parsed, stop))


def on_ranks(parse: Callable[[], Any], job: Callable[[Any, Any], None]) -> int:
    """Exit code of something that runs on all ranks together.

    A `UserError` here was agreed on by all ranks: rank 0 says it, all leave with the same code. Any
    other exception is this rank's own: it says who it is and leaves without another collective call,
    upon which the launcher ends the job.
    """
    from horovod_yolo.distributed.agreement import together

    outlive_lost_output()
    _set_threads()
    launched = launcher()
    try:
        refuse_stranger(launched)
        check_numbers()
        _start_guard(launched)
        comm = connect()
    except UserError as error:  # the same on all ranks of a host
        if not launched.local_rank:
            complain(str(error))
        return MISTAKE
    logs.set_up(comm.rank, comm.size)
    _get_to_know(comm)
    code = _part(comm, lambda: job(comm, together(comm, parse)))
    comm.close()
    return code


def _start_guard(launched: Launcher) -> None:
    """Where there are other ranks, let a process beside this one end it when it hangs: they would wait."""
    from horovod_yolo.distributed import heartbeat

    if launched.size > 1:
        os.environ[heartbeat.VARIABLE] = os.environ.get(heartbeat.VARIABLE) or SECONDS_OF_SILENCE
        heartbeat.start_guard(launched.rank, launched.address)


def _get_to_know(comm: Any) -> None:
    """Share the cores, and tell which rank is where: Horovod's messages have numbers only. *Collective.*"""
    here = socket.gethostname()
    everyone = comm.allgather_object((here, own_cores()))
    _set_threads([cores for host, cores in everyone if host == here])
    hosts: dict[str, list[str]] = {}
    for rank, (host, _) in enumerate(everyone):
        hosts.setdefault(host, []).append(str(rank))
    if comm.rank == 0 and len(hosts) > 1:
        log.info("ranks: %s", "; ".join(f"{', '.join(ranks)} on {host}" for host, ranks in hosts.items()))


def on_elastic_ranks(parse: Callable[[], Any], job: Callable[[Any, Any, StopRequest, Any], None]) -> int:
    """Exit code of something that runs on ranks that come and go, until it is asked to stop.

    As `on_ranks`, but ``job(comm, given, stop, kept)`` begins anew after every change of the world, and a
    rank talks to the others only once it has the newest state: they may be in the middle of the run.
    """
    from horovod_yolo.distributed import elastic, heartbeat

    outlive_lost_output()
    _set_threads()
    launched = launcher()
    logs.set_up(launched.rank, launched.size)
    try:
        check_numbers()
        given = parse()
    except UserError as error:
        if launched.rank == 0:
            complain(str(error))
        return MISTAKE
    pulse = heartbeat.start_guard(launched.rank, launched.address)
    stop = StopRequest(_leave_on_request)
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
        _get_to_know(comm)
        work = partial(_saved_at_a_mistake, comm, kept, lambda: job(comm, given, stop, kept))
        return _part(comm, work, passing=elastic.WORLD_CHANGED)

    try:
        with listening(stop):
            elastic.join()
            return elastic.run(part, kept)
    except elastic.RemovedError as error:
        print(f"{logs.rank_here(pulse.rank)}: {error}", file=sys.stderr, flush=True)
        return FAULT  # not that of a job that stopped: the others go on


def _saved_at_a_mistake(comm: Any, kept: Any, work: Callable[[], None]) -> None:
    """Do ``work``; where all ranks end it together, bring the last commit to the disk before they leave."""
    from horovod_yolo.assembly.elastic import save_at_last

    try:
        work()
    except (UserError, NonFiniteError):
        if comm.rank == 0 and kept.content and kept.content["state"]:
            save_at_last(Path(kept.content["folder"]), kept.content["state"])
        raise


def _save_while_waiting(content: dict[str, Any], stop: StopRequest) -> None:
    """Bring the last commit to the disk while there are too few ranks to go on."""
    from horovod_yolo.assembly.elastic import save_once

    if content["state"] is not None:
        save_once(Path(content["folder"]), content["state"])
        stop.alone_from_here(f"while it waited for ranks; go on with --resume {content['folder']}")


def _give_up(content: dict[str, Any] | None, rank: int) -> NoReturn:
    """End this process after a wait for more ranks that lasted too long."""
    from horovod_yolo.assembly.elastic import save_at_last

    state = content["state"] if content else None
    saved = save_at_last(Path(content["folder"]), state) if content and state else None
    step = f"checkpoint {saved} of step {state['step']}" if state and saved else "nothing was saved"
    words = f"waited for enough ranks, in vain: {step}. Go on with --resume"
    print(f"{logs.rank_here(rank)} {words}", file=sys.stderr)
    _end_at_once(STOPPED if saved else FAULT)


def _end_stuck(seconds: float, rank: int) -> NoReturn:
    """End this process, whose main thread does not come back to the other ranks."""
    words = f"has not noticed for {seconds:.0f} s that the others left: it is stuck. It is ended"
    print(f"{logs.rank_here(rank)} {words}", file=sys.stderr)
    _end_at_once(FAULT)


def _part(comm: Any, work: Callable[[], None], passing: tuple[type[Exception], ...] = ()) -> int:
    """Exit code of this rank's part of a job; what is ``passing`` is the caller's."""
    code = DONE
    try:
        work()
    except passing:
        raise
    except (UserError, NonFiniteError, UnwrittenError, StoppedError) as error:  # agreed on by all ranks
        code, words = _end_of(error)
        if comm.rank == 0:
            print(words, file=sys.stdout if code == STOPPED else sys.stderr, flush=True)
    except Exception as error:  # the last resort of a rank: name it, then leave
        if comm.size == 1:
            if advice := _advice(error):
                print(advice, file=sys.stderr)
            raise
        _leave_alone(comm, error)
    comm.allgather_object(code)  # nobody leaves, and ends the job, before rank 0 has spoken
    return code


def _end_of(error: Exception) -> tuple[int, str]:
    """Exit code and words for how all ranks ended."""
    if isinstance(error, StoppedError):
        return STOPPED if error.saved else FAULT, f"stopped on request {error}"
    if isinstance(error, NonFiniteError):
        return FAULT, f"training stopped: {error}"
    return MISTAKE if isinstance(error, UserError) else FAULT, f"error: {error}"


def log_to_files(comm: Any, folder: str) -> None:
    """Write each rank's messages to a file of its own from here on; empty for none. *Collective.*"""
    from horovod_yolo.distributed.agreement import together

    if folder:
        together(comm, lambda: logs.set_up(comm.rank, comm.size, folder))
        started = launcher()
        log.debug("started by %s%s", started.name, f", job {started.job_id}" if started.job_id else "")


def leave(code: int) -> NoReturn:
    """End this process.

    Ranks that failed together leave at once: a slow end of the interpreter on one would let horovodrun see
    the other's end first and kill it, and its exit code would be lost.
    """
    if code != DONE and not isinstance(launcher(), Alone):
        _end_at_once(code)
    sys.exit(code)


def _end_at_once(code: int) -> NoReturn:
    """End this process, from whatever thread, without what the interpreter does at its end."""
    _ending.acquire()  # for good: while one thread ends it, another may see that the other ranks have left
    with suppress(OSError):  # into a pipe that nobody reads; who holds the lock must come to the end
        sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.flush()
    with suppress(OSError):
        shutil.rmtree(get_temp_dir())  # with the address of the data workers' fork server
    os._exit(code)


def _leave_on_request(words: str) -> None:
    """End this process, from whatever thread: nothing is lost, and the launcher ends the other ranks."""
    print(f"{logs.rank_here(launcher().rank)} stopped on request {words}")
    _end_at_once(STOPPED)


def _leave_alone(comm: Any, error: Exception) -> NoReturn:
    """End this process at once: an orderly shutdown would wait for ranks that wait for this one.

    Where another rank's end is the cause, that one's words are what matters: this one has but a line.
    """
    who = logs.rank_here(comm.rank)
    if isinstance(error, comm.lost_errors):
        print(f"{who}: another rank left or does not answer ({_first_line(error)})", file=sys.stderr)
    elif isinstance(error, DataWorkerError):
        complain(f"{who}: {error}")
    else:
        print(f"{who} failed: {_advice(error) or repr(error)}", file=sys.stderr)
        traceback.print_exc()
    log.debug("%s failed", who, exc_info=True)  # for the file of this rank
    _end_at_once(FAULT)


def _advice(error: Exception) -> str | None:
    """What to lower where memory was short."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return f"the GPU is out of memory: lower --batch-size or --imgsz ({_first_line(error)})"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's on a CPU
        lower = "lower --batch-size, --imgsz or --workers, or leave out --cache ram"
        return f"this host is out of memory: {lower} ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _set_threads(neighbours: Sequence[Cores] = ()) -> None:
    """Share the cores among the ranks of this host, unless the user or the launcher has done so.

    Args:
        neighbours: what those ranks have. Before they are known, all have the same as this one.
    """
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        mine = own_cores()
        torch.set_num_threads(threads(mine, neighbours or [mine] * (launcher().local_size or 1)))


def complain(text: str) -> None:
    """Print a mistake of the user's."""
    print(f"error: {text}", file=sys.stderr, flush=True)
