"""What ranks leave for those that torchrun starts in their place.

torchrun starts all ranks anew where one has not ended with 0, whatever its code, and tells them nothing of
the earlier ones. But each of its agents, one a host, makes a folder for the error files of its ranks: its
user's own, with a random name that only its ranks are told. What lies there speaks to this very job and to
no other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from horovod_yolo.io.atomic import replacing
from horovod_yolo.io.private import check_own

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # FOLDER/attempt_0/1/error.json is rank 1's, before the first restart
_END, _RUN = "horovod_yolo.end.json", "horovod_yolo.run-{}"


@dataclass(frozen=True)
class End:
    """How ranks ended for good.

    Attributes:
        code: exit code.
        words: what was said.
        alone: whether one rank has said it, and not all of them together.
        above: it holds for ranks that were started anew more often than so many times.
    """

    code: int
    words: str
    alone: bool = False
    above: int = -1


def agents_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of the agent that started this process; None where there is none of this user's own."""
    places = Path(environ.get(_ERROR_FILE, "")).parents
    if len(places) < 3 or not places[1].name.startswith("attempt_") or not places[2].is_dir():
        return None
    try:
        check_own(places[2])
    except OSError:
        return None
    return places[2]


def leave_end(end: End) -> None:
    """Tell the ranks that come after this one to end too.

    Raises:
        OSError: the folder takes no file.
    """
    _write(_END, json.dumps(asdict(end)))


def earlier_end(restarts: int) -> End | None:
    """How earlier ranks ended, where this one, started anew so many times, is to end likewise."""
    folder = agents_folder()
    if folder is None:
        return None
    try:
        end = End(**json.loads((folder / _END).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    if restarts > end.above:
        return end
    (folder / _END).unlink(missing_ok=True)  # the agent itself has ended those ranks, and wants others
    return None


def note_run(number: int, folder: Path) -> None:
    """Tell the ranks that come after this one in which folder it trains for the ``number``-th time.

    Raises:
        OSError: the agent's folder takes no file.
    """
    _write(_RUN.format(number), str(folder.absolute()))


def noted_run(number: int) -> str:
    """What `note_run` has told; empty where no earlier rank came so far."""
    folder = agents_folder()
    note = folder / _RUN.format(number) if folder else None
    return note.read_text(encoding="utf-8", errors="surrogateescape") if note and note.exists() else ""


def _write(name: str, text: str) -> None:
    folder = agents_folder()
    if folder is not None:
        with replacing(folder / name) as file:
            file.write(text.encode("utf-8", errors="surrogateescape"))
