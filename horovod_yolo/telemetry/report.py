"""Plots and ``report.html`` at the end of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import SampleKey
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.augment import Sample
from horovod_yolo.data.read import ImageError, read_image
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.models.detector import Detector
from horovod_yolo.prediction.predict import predict_images
from horovod_yolo.report import html, plots
from horovod_yolo.telemetry.csv_log import read_rows
from horovod_yolo.training.events import Callback, EpochReport

log = logging.getLogger(__name__)
SHOWN_IMAGES = 12
SHOWN_CONFIDENCE = 0.25


class ReportWriter(Callback):
    """Draws what a person wants to see of a finished run; nothing before, as the other ranks would wait.

    Args:
        folder: of the run.
        first_batch: keys of training samples to show.
        transform: makes such a sample.
        validation: images to show with what is found in them.
        model: what is to find it, with its weights at the end of the run.
        imgsz: side of the network's input, pixels.
        precision: of the network.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_batch: list[SampleKey],
        transform: Callable[[SampleKey], Sample],
        validation: Annotations,
        model: Detector,
        imgsz: int,
        precision: Precision,
    ) -> None:
        self._folder = folder
        self._first_batch = first_batch
        self._transform = transform
        self._validation = validation
        self._names = validation.names
        self._model = model
        self._imgsz = imgsz
        self._precision = precision
        self._evaluation: Evaluation | None = None

    def on_epoch(self, report: EpochReport) -> None:
        """Remember the last validation."""
        self._evaluation = report.evaluation or self._evaluation

    def on_end(self, results: dict[str, Any]) -> None:
        """Draw curves and examples, and write the report. Whatever fails there, the run has not failed."""
        rows: list[dict[str, float]] = []
        with self._left_out("the table"):
            for row in read_rows(self._folder / "results.csv"):  # YOLOv5's column counts from 0
                rows.append({**row, "epoch": row["epoch"] + 1})
        with self._left_out("results.png"):
            plots.plot_results(rows, self._folder / "results.png")
        with self._left_out("PR_curve.png"):
            self._draw_pr_curves()
        with self._left_out("train_samples.png"):
            self._draw_training_samples()
        with self._left_out("val_predictions.png"):
            self._draw_predictions()
        with self._left_out("the report"):
            self._write_report(results, rows)

    @contextmanager
    def _left_out(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the run is finished, and its weights are what counts
            reason = getattr(error, "strerror", None) or error
            log.warning("%s: %s; %s is left out", self._folder, reason, what)
            log.debug("%s is left out", what, exc_info=True)

    def _write_report(self, results: dict[str, Any], rows: list[dict[str, float]]) -> None:
        titles = {
            "results.png": "Training",
            "PR_curve.png": "Validation",
            "val_predictions.png": "Predictions on validation images",
            "train_samples.png": "Training samples",
        }
        figures = [(title, self._folder / name) for name, title in titles.items()]
        path = html.write_report(self._folder, results, rows, figures, self._names)
        log.info("report: %s", path)

    def _draw_pr_curves(self) -> None:
        if self._evaluation is not None:
            summary = self._evaluation.summary
            plots.plot_pr_curves(summary, self._names, self._folder / "PR_curve.png")

    def _draw_training_samples(self) -> None:
        """The first batch again, as the network saw it: a sample follows from its key."""
        keys = self._first_batch[:SHOWN_IMAGES]
        try:
            samples = [self._transform(key) for key in keys]
        except ImageError as error:
            log.warning("%s; train_samples.png is left out", error)
            return
        plots.plot_samples(
            [sample.image for sample in samples],
            [sample.boxes_xyxy for sample in samples],
            [sample.classes for sample in samples],
            None,
            self._names,
            self._folder / "train_samples.png",
        )

    def _draw_predictions(self) -> None:
        annotations = self._validation
        count = len(annotations)
        chosen = np.linspace(0, count - 1, min(SHOWN_IMAGES, count)).astype(int)
        try:
            images = [read_image(annotations.nearest_file(int(i))) for i in chosen]
        except ImageError as error:
            log.warning("%s; val_predictions.png is left out", error)
            return
        with torch.no_grad():
            found = predict_images(
                self._model,
                images,
                self._imgsz,
                self._precision,
                conf_threshold=SHOWN_CONFIDENCE,
            )
        plots.plot_samples(
            images,
            [d.boxes_xyxy.cpu().numpy() for d in found],
            [d.classes.cpu().numpy() for d in found],
            [d.scores.cpu().numpy() for d in found],
            self._names,
            self._folder / "val_predictions.png",
            ""
            if any(len(d.scores) for d in found)
            else f"no detection of confidence {SHOWN_CONFIDENCE} or more",
        )
