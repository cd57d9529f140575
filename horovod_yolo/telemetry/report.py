"""Plots and ``report.html`` at the end of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from horovod_yolo.data.read import ImageError, read_image
from horovod_yolo.evaluation.predict import predict_images
from horovod_yolo.report import html, plots
from horovod_yolo.telemetry.base import Watcher
from horovod_yolo.telemetry.csv_log import read_rows

if TYPE_CHECKING:
    from horovod_yolo.training.loop import Trainer

log = logging.getLogger(__name__)
SHOWN_IMAGES = 12
SHOWN_CONFIDENCE = 0.25


class ReportWriter(Watcher):
    """Draws what a person wants to see of a finished run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_start(self, trainer: Trainer) -> None:
        """Remember the run. Nothing is drawn before the end: the other ranks would wait for it."""
        self._trainer = trainer

    def on_end(self, results: dict[str, Any]) -> None:
        """Draw the curves and examples, and write the report, if the disk takes them."""
        try:
            self._write(results)
        except OSError as error:
            reason = error.strerror or error
            log.warning("%s: %s; the report or some of its plots are left out", self._folder, reason)

    def _write(self, results: dict[str, Any]) -> None:
        rows = read_rows(self._folder / "results.csv")
        plots.plot_results(rows, self._folder / "results.png")
        if self._trainer.evaluation is not None:
            summary = self._trainer.evaluation.summary
            plots.plot_pr_curves(summary, self._trainer.names, self._folder / "PR_curve.png")
        self._draw_training_samples()
        self._draw_predictions()
        titles = {
            "results.png": "Training",
            "PR_curve.png": "Validation",
            "val_predictions.png": "Predictions on validation images",
            "train_samples.png": "Training samples",
        }
        figures = [(title, self._folder / name) for name, title in titles.items()]
        path = html.write_report(self._folder, results, rows, figures, self._trainer.names)
        log.info("report: %s", path)

    def _draw_training_samples(self) -> None:
        """The first batch again, as the network saw it: a sample follows from its key."""
        keys = self._trainer.sampler.rank_keys(epoch=0, batch=0)[:SHOWN_IMAGES]
        try:
            samples = [self._trainer.transform(key) for key in keys]
        except ImageError as error:
            log.warning("%s; train_samples.png is left out", error)
            return
        plots.plot_samples(
            [sample.image for sample in samples],
            [sample.boxes_xyxy for sample in samples],
            [sample.classes for sample in samples],
            None,
            self._trainer.names,
            self._folder / "train_samples.png",
        )

    def _draw_predictions(self) -> None:
        index, evaluator = self._trainer.evaluator.index, self._trainer.evaluator
        chosen = np.linspace(0, len(index.records) - 1, min(SHOWN_IMAGES, len(index.records))).astype(int)
        try:
            images = [read_image(index.image_path(int(i))) for i in chosen]
        except ImageError as error:
            log.warning("%s; val_predictions.png is left out", error)
            return
        with torch.no_grad():
            found = predict_images(
                self._trainer.ema.model,
                images,
                self._trainer.config.imgsz,
                evaluator.precision,
                conf_threshold=SHOWN_CONFIDENCE,
            )
        plots.plot_samples(
            images,
            [d.boxes_xyxy.cpu().numpy() for d in found],
            [d.classes.cpu().numpy() for d in found],
            [d.scores.cpu().numpy() for d in found],
            self._trainer.names,
            self._folder / "val_predictions.png",
        )
