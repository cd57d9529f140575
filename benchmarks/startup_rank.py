"""`train.py` that notes when things happen. A part of `startup.py --process`.

    STARTUP_NOTES=FOLDER python benchmarks/startup_rank.py FLAGS OF TRAIN.PY

Rank 0 writes FOLDER/moments.json: names and times of what `noted_functions` lists, begun and ended. Its data
workers write FOLDER/samples-PID: the epoch and time of each training sample that they begin.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # data workers import this file too, and need nothing of it
    from horovod_yolo.core.types import SampleKey
    from horovod_yolo.data.augment import Sample

STARTED = time.time()
Moment = tuple[str, float, float]  # name, begun, ended


class Stamping:
    """Notes that a sample is begun, and makes it."""

    def __init__(self, make: Callable[[SampleKey], Sample], folder: Path) -> None:
        self._make = make
        self._folder = folder

    def __call__(self, key: SampleKey) -> Sample:
        """The sample of a key."""
        with (self._folder / f"samples-{os.getpid()}").open("a") as file:
            file.write(f"{key.epoch} {time.time()}\n")
        return self._make(key)


def noted_functions() -> dict[str, tuple[Any, str]]:
    """By name: whose attribute each is."""
    from horovod_yolo.assembly import train
    from horovod_yolo.checkpoint.checkpointer import Checkpointer
    from horovod_yolo.data.loader import Loader
    from horovod_yolo.evaluation.evaluator import Evaluator
    from horovod_yolo.training.loop import Trainer
    from horovod_yolo.training.step import Stepper

    return {
        "data": (train, "run_data"),
        "build": (train, "build_trainer"),
        "training batch": (Loader, "_batch"),
        "step": (Stepper, "step"),
        "validation": (Evaluator, "run"),
        "commit": (Trainer, "commit"),
        "checkpoint": (Checkpointer, "_save"),
    }


def note(name: str, owner: Any, attribute: str, moments: list[Moment]) -> None:
    """Let a function note its calls."""
    function = getattr(owner, attribute)

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        begun = time.time()
        try:
            return function(*given, **named)
        finally:
            of_validation = attribute == "_batch" and not getattr(given[0], "stamps", False)
            moments.append(("validation batch" if of_validation else name, begun, time.time()))

    setattr(owner, attribute, call)


def loader_with_stamps(folder: Path, sample_fn: Any, sampler: Any, **named: Any) -> Any:
    """A loader whose training samples are noted; validation's are left as they are."""
    from horovod_yolo.data.augment import TrainTransform
    from horovod_yolo.data.loader import Loader

    if not isinstance(sample_fn, TrainTransform):
        return Loader(sample_fn, sampler, **named)
    loader = Loader(Stamping(sample_fn, folder), sampler, **named)
    loader.stamps = True  # type: ignore[attr-defined]
    return loader


def main() -> int:
    folder = Path(os.environ["STARTUP_NOTES"])
    from horovod_yolo.assembly import build
    from horovod_yolo.cli import train_main

    moments: list[Moment] = []
    for name, (owner, attribute) in noted_functions().items():
        note(name, owner, attribute, moments)
    moments.append(("imports", STARTED, time.time()))
    build.Loader = partial(loader_with_stamps, folder)  # type: ignore[misc,assignment]
    code = train_main()
    if os.environ.get("HOROVOD_RANK", "0") == "0":
        (folder / "moments.json").write_text(json.dumps(moments))
    return code


if __name__ == "__main__":
    from horovod_yolo.assembly.ending import leave

    leave(main())
