"""``last.pt`` and ``best.pt``, written beside training by a thread."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.resume import KEEP
from horovod_yolo.checkpoint.state import inference_state
from horovod_yolo.engine.callbacks.base import Watcher

if TYPE_CHECKING:
    from horovod_yolo.engine.trainer import Trainer

log = logging.getLogger(__name__)


class Checkpointer(Watcher):
    """Saves each commit; training goes on as soon as the tensors are copied."""

    def __init__(self, weights: Path, save_period: int) -> None:
        self._weights = weights
        self._save_period = save_period
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Clear away what a killed run was writing."""
        for unfinished in self._weights.glob(".*.tmp"):
            unfinished.unlink(missing_ok=True)

    def on_commit(self, state: dict[str, Any], best: bool) -> None:
        """Copy the state and queue it; waits only where the disk is a whole commit behind."""
        self.wait()
        self._pending = self._writer.submit(self._save, _copied(state), best)

    def on_end(self, results: dict[str, Any]) -> None:
        """Wait for the last write."""
        self.wait()
        self._writer.shutdown()

    def wait(self) -> None:
        """Until nothing is left to write."""
        if self._pending is not None:
            self._pending.result()

    def _save(self, state: dict[str, Any], best: bool) -> None:
        try:
            self._weights.mkdir(parents=True, exist_ok=True)
            data = store.serialise(state)
            store.write_rotating(self._weights / "last.pt", data, KEEP)
            if best:
                store.write(self._weights / "best.pt", store.serialise(inference_state(state)))
            epochs_done, within = state["sampler"]["epoch"], state["sampler"]["batch"]
            if self._save_period > 0 and within == 0 and epochs_done % self._save_period == 0:
                store.write(self._weights / f"epoch{epochs_done}.pt", data)
        except OSError as error:
            log.warning(
                "CHECKPOINT NOT WRITTEN to %s: %s. Training goes on; the previous checkpoint is whole. "
                "Free or mend the disk",
                self._weights,
                error.strerror or error,
            )


def _copied(value: Any) -> Any:
    """A deep copy of nested builtins with all tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value
