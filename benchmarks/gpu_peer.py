"""The same training steps by Ultralytics' trainer, for `gpu.py`, where its package is importable.

Its own trainer does everything, by its documented call and callbacks; only its data loader gives the first
batch again and again, as ours does. Its numbers are fp16 by autocast wherever ours are 16 bits.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from gpu_loader import made_up_set

OTHERS = ("yolov3", "yolov5")  # by these names its package knows models with another head
WARM_UP = 3  # batches


def images_per_s(
    model: str, size: int, batch: int, precision: str, device: torch.device, seconds: float
) -> float | None:
    """Images a second of its steps, by the clock; None: there is nothing to compare with, or it fails."""
    if importlib.util.find_spec("ultralytics") is None or model.startswith(OTHERS):
        return None
    try:
        return _measured(model, size, batch, precision in ("bf16", "fp16"), device.type, seconds)
    except Exception as error:  # noqa: BLE001 - of another project: what is ours is measured all the same
        print(f"Ultralytics' trainer: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None


@cache
def _measured(model: str, size: int, batch: int, narrow: bool, device: str, seconds: float) -> float:
    with tempfile.TemporaryDirectory() as name:
        # It writes settings at its first import, and would install what it misses.
        os.environ |= {"YOLO_CONFIG_DIR": name, "YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true"}
        from ultralytics import YOLO  # type: ignore[import-not-found]

        clock = _Clock(seconds, device)
        trained = YOLO(f"{model}.yaml")
        trained.add_callback("on_train_start", clock.begin)
        trained.add_callback("on_train_batch_end", clock.count)
        settings = {"imgsz": size, "batch": batch, "amp": narrow, "device": 0 if device == "cuda" else "cpu"}
        settings |= {"epochs": 1, "nbs": batch, "warmup_epochs": 0, "workers": 2, "optimizer": "SGD"}
        try:
            trained.train(
                **settings,
                data=str(made_up_set(Path(name), batch)),
                project=name,
                val=False,
                plots=False,
                save=False,
                verbose=False,
            )
        except _EnoughError:
            return round(clock.batches * batch / clock.seconds, 1)
    raise RuntimeError("its training ended before it was measured")


class _EnoughError(Exception):
    """Leaves the training."""


class _Repeated:
    """A data loader that gives one batch for ever."""

    def __init__(self, loader: Any) -> None:
        self._batch = next(iter(loader))
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return 1_000_000

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield dict(self._batch)


class _Clock:
    """Counts batches, and the seconds they take, after some."""

    def __init__(self, at_least: float, device: str) -> None:
        self.batches, self.seconds = -WARM_UP, 0.0
        self._at_least = at_least
        self._wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else nullcontext
        self._begun = 0.0

    def begin(self, trainer: Any) -> None:
        trainer.train_loader = _Repeated(trainer.train_loader)

    def count(self, _trainer: Any) -> None:
        self.batches += 1
        if self.batches == 0:
            self._wait()
            self._begun = time.perf_counter()
        elif self.batches > 0 and time.perf_counter() - self._begun > self._at_least:
            self._wait()
            self.seconds = time.perf_counter() - self._begun
            raise _EnoughError
