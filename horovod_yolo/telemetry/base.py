"""A watcher that does nothing: subclasses name the moments they care for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from horovod_yolo.training.loop import EpochReport, StepReport, Trainer


class Watcher:
    """See `horovod_yolo.training.loop.Callback`."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step."""

    def on_step(self, report: StepReport) -> None:
        """After each optimizer step."""

    def on_epoch(self, report: EpochReport) -> None:
        """After each epoch."""

    def on_commit(self, state: dict[str, Any], best: bool) -> None:
        """With the state to save."""

    def on_end(self, results: dict[str, Any]) -> None:
        """After the last epoch."""

    def close(self) -> None:
        """At the very end, also of a run that ends early."""
