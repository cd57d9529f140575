"""Which of the jobs at a search are alive: each has a file in the study's folder, and touches it."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path

from horovod_yolo.assembly.hand_on import host_id
from horovod_yolo.assembly.run_lock import is_running, parsed, this_process
from horovod_yolo.core.errors import UserError
from horovod_yolo.io.lock import SECONDS_UNTIL_STALE, FileLock, Verdict, seen
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
        content = json.dumps(this_process()).encode()
        try:
            own_folder(self._folder)
            self._lock = FileLock.take(self._folder / self.name, content, lambda _: Verdict.UNKNOWN)
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror or error})", where=self._folder) from None

    def is_lost(self, name: str) -> bool:
        """Whether another job is gone. One on another host is, where its file stays as it is for a minute."""
        if name == self.name:
            return False
        found = seen(self._folder / Path(name).name)
        if found is None:
            return True
        told = parsed(found.content)  # nothing yet where it is being written: then its touches tell
        if told.get("place") == host_id():
            return not is_running(told.get("pid"), told.get("began"))
        now = time.monotonic()
        before, since = self._since.get(name, (-1, now))
        if before != found.touched_ns:
            self._since[name] = (found.touched_ns, now)
            return False
        return now - since > SECONDS_UNTIL_STALE

    def release(self) -> None:
        """Leave the search: what this job has not ended is lost from now on."""
        self._lock.release()
