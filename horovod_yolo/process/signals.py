"""How a request to stop reaches a rank: SIGTERM, SIGINT, SIGUSR1 (Slurm's warning), SIGHUP (the terminal is
gone), the launcher's file.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from horovod_yolo.process.stop import StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
OF_LAUNCHERS = signal.SIGTERM  # with which they also end ranks that they start anew
STOP_FILE = "HOROVOD_YOLO_STOP_FILE"  # names a file; the launcher makes it to stop the ranks that see it
SECONDS_BETWEEN_LOOKS = 0.2


@contextmanager
def listening(stop: StopRequest) -> Iterator[None]:
    """Pass requests on to ``stop``; a second SIGINT ends this process at once. For the main thread.

    A thread of its own hears them, because Python's handlers wait while the main thread is inside Horovod.
    """
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    before = {number: signal.signal(number, _heard_by_the_thread) for number in not_ignored(SIGNALS)}
    earlier = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    name = os.environ.get(STOP_FILE)
    listener = threading.Thread(target=_listen, args=(ears, stop, Path(name) if name else None), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(mouth)
        listener.join()
        os.close(ears)


def not_ignored(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those that this process was not started to ignore, as nohup does with SIGHUP."""
    return [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


def is_request(file: Path) -> bool:
    """Whether the launcher's file is there: made by this user, in a folder that nobody else can write to."""
    try:
        found, folder = file.lstat(), file.parent.lstat()
    except OSError:
        return False
    own = found.st_uid == folder.st_uid == os.geteuid()
    return own and stat.S_ISREG(found.st_mode) and stat.S_ISDIR(folder.st_mode) and not folder.st_mode & 0o022


def _heard_by_the_thread(number: int, frame: FrameType | None) -> None:
    """Python writes the number into the pipe only where there is a handler."""


def _listen(ears: int, stop: StopRequest, file: Path | None) -> None:
    """Until the pipe is closed."""
    interrupts = 0
    while True:
        ready, _, _ = select.select([ears], [], [], SECONDS_BETWEEN_LOOKS if file else None)
        heard = os.read(ears, 64) if ready else b""
        if ready and not heard:
            return
        interrupts += heard.count(signal.SIGINT)
        if interrupts > 1:
            os._exit(128 + signal.SIGINT)
        if any(number in heard for number in SIGNALS):
            stop.ask(certain=any(number in heard for number in SIGNALS if number != OF_LAUNCHERS))
        elif file is not None and is_request(file):
            file = None  # once is enough
            stop.ask()
