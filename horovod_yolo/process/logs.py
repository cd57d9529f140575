"""Where messages go: the console, and with ``--log-dir`` a file of each rank."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.text import plain
from horovod_yolo.io.private import own_folder


def rank_here(rank: int) -> str:
    """A rank of this process's host, as all messages name it."""
    return f"rank {rank} on {socket.gethostname()}"


def set_up(rank: int, size: int, folder: str = "", *, as_script: bool = False) -> None:
    """Show rank 0's information and every rank's warnings; write all to a file where there is a folder.

    The file is ``rank-00-host1.log``; a job that is started again appends to it.

    Args:
        rank: of this process.
        size: number of ranks.
        folder: of the files; empty for none.
        as_script: only this package's messages are ours. What the script has set up for logging stays, and
            shows them in its own way.

    Raises:
        UserError: the folder or the file cannot be made.
    """
    handlers: list[logging.Handler] = []
    if not (as_script and logging.getLogger().handlers):
        handlers.append(_console(rank))
    if folder:
        number = str(rank).zfill(max(2, len(str(size - 1))))
        path = Path(folder) / f"rank-{number}-{socket.gethostname()}.log"
        handlers.append(_file(path, rank_here(rank)))
    ours = logging.getLogger("horovod_yolo")
    ours.setLevel(logging.DEBUG)
    if not as_script:
        logging.getLogger("matplotlib").setLevel(logging.WARNING)  # tells of its list of fonts
    if as_script:
        _replace(ours, handlers)
    else:
        logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    if folder or not as_script:
        logging.raiseExceptions = False  # a full disk costs lines of the file, not a traceback for each


def _console(rank: int) -> logging.Handler:
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    layout = "%(message)s" if rank == 0 else f"{rank_here(rank)}: %(message)s"
    console.setFormatter(_OneLine(layout))
    return console


class _OneLine(logging.Formatter):
    """Keeps a message on its line; a traceback that follows has lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """With what `plain` makes of the message."""
        record.message = plain(record.message)
        return super().formatMessage(record)


def _replace(logger: logging.Logger, handlers: Sequence[logging.Handler]) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    for handler in handlers:
        logger.addHandler(handler)


def _file(path: Path, who: str) -> logging.Handler:
    try:
        own_folder(path.parent)
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(
            f"no log can be written ({error.strerror})", where=path, fix="name another --log-dir"
        ) from None
    handler.setFormatter(_OneLine(f"%(asctime)s %(levelname)s {who} %(name)s: %(message)s"))
    return handler
