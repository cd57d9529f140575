"""``python -m horovod_yolo.cli.call JSON``: a rank of a job that a call of `YOLO` from Python has started.

Rank 0 hands over what the call returns or raises. What all ranks raise together is no failure of a rank: they
end with code 0, and the caller raises it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from horovod_yolo.api import YOLO
from horovod_yolo.assembly.ending import AGREED, DONE, leave
from horovod_yolo.assembly.job import join_as_script
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.process.told import as_lines


def take_part(asked: dict[str, Any]) -> None:
    """Do this rank's part of the call. *Collective.*"""
    try:
        script = join_as_script()
    except UserError as error:  # the same on all ranks of a host
        _tell(_raised(error))
        return
    try:
        with script.on_ranks() as comm:
            model = together(comm, lambda: YOLO(asked["model"]))
        returned = getattr(model, asked["call"])(**asked["arguments"])
    except AGREED as error:
        _tell(_raised(error))
    else:
        _tell({"returned": returned, "weights": str(model.weights)})
    script.end(DONE)


def _raised(error: Exception) -> dict[str, Any]:
    return {
        "raised": type(error).__name__,
        "words": str(error),
        "saved": getattr(error, "saved", False),
    }


def _tell(outcome: dict[str, Any]) -> None:
    if launcher().rank == 0:
        for line in as_lines(outcome):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    take_part(json.loads(sys.argv[1]))
    leave(DONE)
