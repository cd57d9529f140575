"""A small disk of its own for a test: it fills up, it turns read-only, and it ends with the test."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType


def why_not() -> str | None:
    """Why no disk can be made here; None where it can."""
    if os.geteuid() != 0:
        return "a disk in a mount namespace needs root"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no disk can be mounted in a namespace: {tried.stderr.strip()}" if tried.returncode else None


class Disk:
    """A tmpfs over ``folder``, in a mount namespace that ends with this process.

    Attributes:
        inside: the folder on the disk, as it is reached from outside the namespace.
    """

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        self._size = size

    def __enter__(self) -> Disk:
        self.folder.mkdir(exist_ok=True)
        script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo && exec sleep infinity'
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount"]
        self._holder = subprocess.Popen(
            [*words, "sh", "-c", script, "sh", self._size, str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"\n", "the disk is mounted"
        self.inside = Path(f"/proc/{self._holder.pid}/root{self.folder}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.kill()
        self._holder.communicate()

    def start(self, argv: Sequence[str | Path], output: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command that sees the disk; what it prints goes to ``output``."""
        with output.open("wb") as file:
            return subprocess.Popen(
                self._words(*argv),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **variables},
            )

    def fill(self) -> None:
        """Take all the room that is left, also what a writer frees meanwhile."""
        with (self.inside / "filler").open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                self._fill_by(file.fileno(), size)

    @staticmethod
    def _fill_by(descriptor: int, size: int) -> None:
        try:
            while True:
                os.write(descriptor, bytes(size))
        except OSError as error:
            assert error.strerror == "No space left on device"

    def free(self) -> None:
        """The end of `fill`."""
        (self.inside / "filler").unlink()

    def set_read_only(self, read_only: bool) -> None:
        """Remount. The kernel refuses while a file is open for writing, so try until it does not."""
        option = f"remount,{'ro' if read_only else 'rw'},size={self._size}"
        deadline = time.monotonic() + 20
        while subprocess.run(self._words("mount", "-o", option, self.folder), check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _words(self, *argv: str | Path) -> list[str]:
        inside = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", f"--wdns={Path.cwd()}", "--"]
        return [*inside, *map(str, argv)]
