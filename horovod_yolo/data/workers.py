"""The processes that make batches: how they start, whom they obey, how they die.

They start from a fork server, not by forking the trainer: a fork after Horovod or MPI has started threads
copies locks that nobody will ever release.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing import connection, forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir

import cv2

from horovod_yolo.process.allocator import keep_freed_memory

_JOB_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
_LONGEST_TEMPORARY_FOLDER = (
    75  # bytes; 107 make a socket's address, `/pymp-xxxxxxxx/listener-xxxxxxxx` ends it
)
_LIKELY_CAUSE = {
    signal.SIGKILL: "memory may be short: lower --workers, or leave out --cache ram",
    signal.SIGBUS: "a file of --cache disk or of the annotations was cut short, or /dev/shm is full",
}


def first_death(processes: Sequence[BaseProcess]) -> str | None:
    """Who died of what, and what may help; None where all are alive a second from now."""
    if not processes:
        return None
    dead = connection.wait([process.sentinel for process in processes], timeout=1.0)
    for process in processes:
        if process.sentinel in dead:
            return f"data worker {process.pid} {_cause(process.exitcode or 0)}"
    return None


def _cause(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        number = signal.Signals(-code)
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"
    advice = _LIKELY_CAUSE.get(number)
    return f"was killed by {number.name}" + (f" ({advice})" if advice else "")


def forkserver_context(preload: list[str]) -> BaseContext:
    """Start the fork server, deaf to the job's signals, as all it forks will be.

    Ctrl-C and a scheduler's SIGTERM go to the whole process group, but only the trainer may answer
    them: it still needs its workers, and they the server, until it has written its checkpoint.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(preload)
    _keep_socket_paths_short()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    try:
        resource_tracker.ensure_running()  # lifts the block of two of them whenever it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _keep_socket_paths_short() -> None:
    """Let multiprocessing make its folder in /tmp where TMPDIR is too long for the address of a socket.

    It makes one only, at first use, and removes it at the end of this process.
    """
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_TEMPORARY_FOLDER:
        before, tempfile.tempdir = tempfile.tempdir, "/tmp"
        try:
            get_temp_dir()
        finally:
            tempfile.tempdir = before


def settle_in(_worker: int) -> None:
    """Make a new worker single-threaded, deaf to the job's signals, and mortal.

    The trainer's own SIGTERM ends a worker. So does the trainer's death, however sudden: PyTorch's
    watchdog looks at the parent process, which here is the fork server, and that one waits for the
    workers.
    """
    cv2.setNumThreads(0)
    keep_freed_memory()
    signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)  # the fork server may be older than this loader
    trainer = parent_process()
    assert trainer is not None, "runs in a child process only"
    threading.Thread(target=_end_on_request_of, args=(trainer,), daemon=True).start()
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()


def _end_on_request_of(trainer: BaseProcess) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer.pid:
        pass
    os._exit(0)


def _end_with(trainer: BaseProcess) -> None:
    trainer.join()
    os._exit(1)
