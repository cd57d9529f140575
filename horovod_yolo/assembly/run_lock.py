"""A run folder belongs to one job: two would damage its tables and overwrite each other's checkpoints."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.ending import AGREED
from horovod_yolo.assembly.hand_on import host_id
from horovod_yolo.core.errors import TakenError, UserError
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.launchers.launcher import JOB_IDS
from horovod_yolo.io.lock import FileLock, HeldError, Verdict
from horovod_yolo.training.events import Callback, StepReport

log = logging.getLogger(__name__)
NAME = "run.lock"


class RunLock(Callback):
    """The lock of a run folder, on the rank that has it; on the others it is never taken.

    As a callback it ends a rank whose lock another job has taken over, before anything else is written.

    Args:
        token: of the job: ranks of an elastic one hand the lock on by it. Empty: a new one.
    """

    def __init__(self, token: str = "") -> None:
        self.token = token or secrets.token_hex(16)
        self._folder = Path()
        self._lock: FileLock | None = None

    def take(self, folder: Path) -> None:
        """Make the folder this job's; may take a minute where a lock is left over from a host that is gone.

        Raises:
            UserError: another job has it.
        """
        if self._lock is not None:
            self._lock.touch()
            self._require()
            return
        self._folder = folder
        mine = _owner(self.token)
        try:
            self._lock = FileLock.take(
                folder / NAME, json.dumps(mine).encode(), lambda content: judged(content, mine)
            )
        except HeldError as error:
            raise UserError(
                f"another job is at work on this run: {_named(error.content)}",
                where=folder,
                fix="wait for its end, stop it, or train under another --name",
            ) from None
        except OSError as error:
            words = "nothing keeps another job out of it"
            log.warning("%s: no lock can be made (%s): %s", folder, error.strerror or error, words)

    def is_seen(self, folder: Path, comm: Communicator) -> bool:
        """Whether this rank sees the lock that rank 0 has taken, where it could. *Collective.*"""
        token = comm.broadcast_object(self.token if self._lock is not None else "")
        try:
            return not token or parsed((folder / NAME).read_bytes()).get("token") == token
        except OSError:
            return False

    def drop(self) -> None:
        """Leave it to the rank that has taken it, or will."""
        if self._lock is not None:
            self._lock.drop()
            self._lock = None

    def release(self) -> None:
        """Let other jobs have the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def until_over(self, *, handed_on: bool = False) -> Iterator[None]:
        """Inside, the job is at work; after it the lock is released.

        Args:
            handed_on: what not all ranks raise alike is a change of an elastic world, whose job goes on.
        """
        over = not handed_on
        try:
            yield
            over = True
        except AGREED:
            over = True
            raise
        finally:
            if over:
                self.release()

    def on_step(self, report: StepReport) -> None:
        """See that it is still ours."""
        self._require_here()

    def on_commit(self, state: dict[str, Any], best: bool) -> None:
        """The same before a checkpoint is written."""
        self._require_here()

    def _require(self) -> None:
        try:
            self._require_here()
        except TakenError as error:
            raise UserError(str(error)) from None

    def _require_here(self) -> None:
        if self._lock is not None and self._lock.lost_to is not None:
            who = _named(self._lock.lost_to)
            raise TakenError(f"{self._folder}: another job has taken this run over: {who}")


def judged(content: bytes, mine: Mapping[str, Any]) -> Verdict:
    """What is known of the owner of a lock."""
    theirs = parsed(content)
    if theirs.get("token") == mine["token"]:
        return Verdict.GONE  # a rank of this job had it
    if theirs.get("place") == mine["place"]:
        return Verdict.ALIVE if is_running(theirs.get("pid"), theirs.get("began")) else Verdict.GONE
    if mine["job"] and theirs.get("job") == mine["job"]:
        return Verdict.GONE  # this job was put back into the queue
    return Verdict.UNKNOWN


def batch_job(environ: Mapping[str, str]) -> str:
    """The id of the batch system's job, the same when it is put back into the queue; empty for none."""
    found = next((environ[name] for name in JOB_IDS if environ.get(name)), "")
    index = environ.get("LSB_JOBINDEX", "0")  # the elements of LSF's arrays share an id
    return f"{found}[{index}]" if found and index != "0" else found


def is_running(pid: object, began: object) -> bool:
    """Whether there is a process of this number that began then: numbers are used again."""
    return isinstance(pid, int) and (now := beginning(pid)) is not None and now == began


def beginning(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None where it has ended, seen by its parent or not."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else rest[18]


def _owner(token: str) -> dict[str, Any]:
    return {"token": token, **this_process(), "job": batch_job(os.environ)}


def this_process() -> dict[str, Any]:
    """What others can find it by: its host, and its number and beginning there, for `is_running`."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "place": host_id(), "pid": pid, "began": beginning(pid)}


def parsed(content: bytes) -> dict[str, Any]:
    """What an owner has written into a lock; nothing where it is cut off, or none of ours."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _named(content: bytes) -> str:
    """The owner, for people."""
    said = parsed(content)
    job = f", job {said['job']!s:.60}" if said.get("job") else ""
    return f"process {said.get('pid', '?')!s:.20} on {said.get('host', 'an unknown host')!s:.80}{job}"
