"""Which of the jobs at a search are alive: each has a file in the study's folder, and touches it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.hand_on import host_id
from horovod_yolo.assembly.run_lock import beginning, is_running
from horovod_yolo.core.errors import UserError
from horovod_yolo.io.lock import SECONDS_UNTIL_STALE, FileLock, Verdict
from horovod_yolo.io.private import own_folder

OWNERS = "owners"


class Owner:
    """This job at a search, as the others see it.

    Args:
        folder: of the study.

    Raises:
        UserError: the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.name = secrets.token_hex(8)
        self._folder = folder / OWNERS
        self._since: dict[str, tuple[int, float]] = {}  # by owner: its last touch, and when that was seen
        content = {"host": socket.gethostname(), "place": host_id(), "pid": os.getpid()}
        content["began"] = beginning(os.getpid())
        try:
            own_folder(self._folder)
            self._lock = FileLock.take(
                self._folder / self.name, json.dumps(content).encode(), lambda _: Verdict.UNKNOWN
            )
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror or error})", where=self._folder) from None

    def is_lost(self, name: str) -> bool:
        """Whether another job is gone. One on another host is, where its file stays as it is for a minute."""
        if name == self.name:
            return False
        path = self._folder / Path(name).name
        try:
            with path.open("rb") as file:
                told, touched = _parsed(file.read()), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return True
        if told.get("place") == host_id():
            return not is_running(told.get("pid"), told.get("began"))
        now = time.monotonic()
        before, since = self._since.get(name, (-1, now))
        if before != touched:
            self._since[name] = (touched, now)
            return False
        return now - since > SECONDS_UNTIL_STALE

    def release(self) -> None:
        """Leave the search: what this job has not ended is lost from now on."""
        self._lock.release()


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:  # not written yet: its touches tell
        return {}
    return found if isinstance(found, dict) else {}
