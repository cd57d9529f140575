"""The file that asks ranks to stop, made on hosts that have some, and removed after the job."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

log = logging.getLogger(__name__)
_CONNECT_SECONDS = 8
_SECONDS_TO_REMOVE = 5
_SECONDS_BETWEEN_TRIES = 2
_EVERYWHERE = Path("/tmp")  # TMPDIR may be there on this host only, as where a scheduler made it
_MADE = b"made"
# For any login shell: one line without a `!`. Nothing is touched where somebody else has taken the name.
_SCRIPT = (
    "umask 077; mkdir {folder} 2>/dev/null; "
    "if [ -d {folder} ] && [ ! -L {folder} ] && [ -O {folder} ] && touch {file}; "
    "then echo made; cat >/dev/null; rm -f {file}; rmdir {folder} 2>/dev/null; "
    "else echo its folder for the request cannot be made there >&2; fi"
)


def private_folder() -> Path:
    """A new folder of this user's own, whose path does for other hosts too."""
    there = _EVERYWHERE if os.access(_EVERYWHERE, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix="horovod_yolo-", dir=there))


class StopFiles:
    """A file with the same path here and on other hosts, from `make` to the end of the context.

    It lies in a `private_folder` of its own. On another host an ssh session makes both and removes them when
    its input ends: also when this process is killed. A host where that fails is tried again until the end.

    Args:
        others: the other hosts that are to be asked, called when the files are made.
        one_is_enough: the first of them that can be asked will do.
    """

    def __init__(self, others: Callable[[], Sequence[str]], *, one_is_enough: bool) -> None:
        self.made = False
        self.file = private_folder() / "stop"
        self._others = others
        self._one_is_enough = one_is_enough
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._sessions: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []

    def make(self) -> None:
        """Make them, without waiting for the other hosts."""
        self.made = True
        self.file.touch()
        hosts = self._others()
        groups = [hosts] if self._one_is_enough and hosts else [[host] for host in hosts]
        self._threads = [threading.Thread(target=self._ask_one_of, args=(group,)) for group in groups]
        for thread in self._threads:
            thread.start()

    def _ask_one_of(self, hosts: Sequence[str]) -> None:
        """Go round until one of the hosts has the file."""
        said = False
        while not self._over.is_set():
            reasons = []
            for host in hosts:
                reason = self._ask(host)
                if reason is None:
                    if said:
                        log.warning("%s has been asked to stop now", host)
                    return
                reasons.append(f"{host}: {reason}")
            if not said and not self._over.is_set():
                log.warning("THE RANKS COULD NOT BE ASKED TO STOP (%s); trying again", "; ".join(reasons))
                said = True
            self._over.wait(_SECONDS_BETWEEN_TRIES)

    def _ask(self, host: str) -> str | None:
        """Open the session that keeps the file on a host; why it could not, else None."""
        quoted = {"folder": shlex.quote(str(self.file.parent)), "file": shlex.quote(str(self.file))}
        script = _SCRIPT.format(**quoted)
        options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
        pipe = subprocess.PIPE
        with self._lock:
            if self._over.is_set():
                return "the job is over"
            try:
                session = subprocess.Popen(
                    ["ssh", *options, host, f"exec sh -c {shlex.quote(script)}"],
                    stdin=pipe,
                    stdout=pipe,
                    stderr=pipe,
                    start_new_session=True,
                )
            except OSError as error:
                return f"ssh cannot be started here ({error.strerror})"
            self._sessions.append(session)
        assert session.stdout is not None and session.stderr is not None
        if any(line.strip() == _MADE for line in session.stdout):  # a login shell may greet first
            return None
        said = session.stderr.read(1 << 16).decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"ssh ended with code {session.wait()}"

    def __enter__(self) -> StopFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the sessions; one whose host does not answer is left to that host."""
        with self._lock:
            self._over.set()
        deadline = time.monotonic() + _SECONDS_TO_REMOVE
        for session in self._sessions:
            assert session.stdin is not None
            session.stdin.close()
        for session in self._sessions:
            try:
                session.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                os.killpg(session.pid, signal.SIGKILL)
                session.wait()
        for thread in self._threads:
            thread.join()
        for session in self._sessions:
            for pipe in (session.stdout, session.stderr):
                assert pipe is not None
                pipe.close()
        shutil.rmtree(self.file.parent, ignore_errors=True)
