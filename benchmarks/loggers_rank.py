"""`train.py` that notes when each step is done. A part of `loggers.py`.

STEP_TIMES=FILE python benchmarks/loggers_rank.py FLAGS OF TRAIN.PY
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.ending import leave
from horovod_yolo.cli import train_main
from horovod_yolo.training.step import Stepper

if __name__ == "__main__":
    made = Stepper.step

    with Path(os.environ["STEP_TIMES"]).open("w", buffering=1) as times:

        def noted(*arguments: Any) -> Any:
            """Make the step, and write the time: seconds of a clock that only goes on."""
            step = made(*arguments)
            times.write(f"{time.perf_counter()}\n")
            return step

        Stepper.step = noted
        leave(train_main())
