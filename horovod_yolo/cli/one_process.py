"""What commands without ranks share."""

from __future__ import annotations

from collections.abc import Callable

from horovod_yolo.assembly.ending import DONE, MISTAKE, complain
from horovod_yolo.core.errors import UserError


def guarded(run: Callable[[], int | None]) -> int:
    """Exit code of something that runs in one process."""
    try:
        return run() or DONE
    except UserError as error:
        complain(str(error))
        return MISTAKE
