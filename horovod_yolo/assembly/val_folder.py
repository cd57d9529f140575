"""What ``horovod-yolo val`` leaves in a folder: its numbers, the confusion matrix, curves and a page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from horovod_yolo.assembly.run_folder import new_run_folder, versions, write_json
from horovod_yolo.assembly.validate import ValOptions
from horovod_yolo.distributed.agreement import on_rank_0
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.metrics.scores import Evaluation, metrics_of
from horovod_yolo.report.html import write_report
from horovod_yolo.report.plots import plot_confusion, plot_pr_curves

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ValPlace:
    """Flags of ``horovod-yolo val`` that say where; names and defaults are YOLOv5's."""

    project: str = "runs/val"
    name: str = "exp"
    exist_ok: bool = False
    noplots: bool = False

    def made(self, comm: Communicator) -> Path | None:
        """The folder, which rank 0 makes; None where none is wanted. *Collective.*

        Raises:
            UserError: it cannot be made; on all ranks alike.
        """
        if self.noplots:
            return None
        return on_rank_0(
            comm, lambda: new_run_folder(Path(self.project), self.name, self.exist_ok, inside="")
        )


def write_validation(
    folder: Path, evaluation: Evaluation, names: Sequence[str], options: ValOptions, size: int
) -> None:
    """Write all of it; ``size`` is the number of ranks. A disk that refuses it costs a warning."""
    results = {
        "model": options.weights,
        "data": options.data,
        "task": options.task,
        "world_size": size,
        "metrics": metrics_of(evaluation, names),
        "versions": versions(),
    }
    try:
        write_json(folder / "results.json", results)
        plot_pr_curves(evaluation.summary, names, folder / "PR_curve.png")
        if evaluation.mistakes is not None:
            plot_confusion(evaluation.mistakes.matrix, names, folder / "confusion_matrix.png")
        write_report(folder, results, [], names)
    except OSError as error:
        log.warning("%s: %s; the rest is left out", folder, error.strerror or error)
