"""TensorBoard events of a run; only where the ``tensorboard`` package is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from horovod_yolo.engine.callbacks.base import Watcher
from horovod_yolo.engine.callbacks.csv_log import epoch_row

if TYPE_CHECKING:
    from horovod_yolo.engine.trainer import EpochReport


def available() -> bool:
    """Whether events can be written."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard(Watcher):
    """Writes the columns of ``results.csv`` as scalars."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def on_epoch(self, report: EpochReport) -> None:
        """Add an epoch's scalars."""
        for name, value in epoch_row(report).items():
            if name != "epoch" and isinstance(value, float):
                self._writer.add_scalar(name, value, report.epoch)
        self._writer.flush()

    def on_end(self, results: dict[str, Any]) -> None:
        """Close the file."""
        self._writer.close()
