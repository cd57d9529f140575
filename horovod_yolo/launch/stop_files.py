"""The file that asks ranks to stop, made on each host that has some, and removed after the job."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

_CONNECT_SECONDS = 8
_SECONDS_TO_REMOVE = 5


class StopFiles:
    """A file with the same path here and on other hosts, from `make` to the end of the context.

    It lies in a folder of its own, which is here already. On another host an ssh session makes both and
    removes them when its input ends: also when this process is killed.

    Args:
        file: what the ranks look for.
        others: names of the other hosts, asked for when the files are made.
    """

    def __init__(self, file: Path, others: Callable[[], Sequence[str]]) -> None:
        self.made = False
        self._file = file
        self._others = others
        self._sessions: list[subprocess.Popen[bytes]] = []

    def make(self) -> None:
        """Make them, without waiting for the other hosts. ssh says which one it does not reach."""
        self.made = True
        self._file.touch()
        file, folder = shlex.quote(str(self._file)), shlex.quote(str(self._file.parent))
        script = (
            f"mkdir -p {folder} && touch {file} && cat >/dev/null; rm -f {file}; rmdir {folder} 2>/dev/null"
        )
        ssh = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
        for host in self._others():
            words = [*ssh, host, f"exec sh -c {shlex.quote(script)}"]  # the login shell may be any
            session = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )
            self._sessions.append(session)

    def __enter__(self) -> StopFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the sessions; one whose host does not answer is left to that host."""
        deadline = time.monotonic() + _SECONDS_TO_REMOVE
        for session in self._sessions:
            assert session.stdin is not None
            session.stdin.close()
        for session in self._sessions:
            try:
                session.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                session.kill()
                session.wait()
