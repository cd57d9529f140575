"""Plots and ``report.html`` at the end of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Detections, SampleKey
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.augment import Sample
from horovod_yolo.data.read import ImageError, read_image
from horovod_yolo.metrics.mistakes import CONFIDENCE
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.models.detector import Detector
from horovod_yolo.prediction.predict import predict_images
from horovod_yolo.report import html, plots
from horovod_yolo.report.finished import epochs_of
from horovod_yolo.report.statistics import plot_labels
from horovod_yolo.training.events import Callback, EpochReport

log = logging.getLogger(__name__)
SHOWN_IMAGES = 12
SHOWN_WORST = 8
SHOWN_CONFIDENCE = CONFIDENCE


class ReportWriter(Callback):
    """Draws what a person wants to see of a finished run; nothing before, as the other ranks would wait.

    Args:
        folder: of the run.
        first_batch: keys of training samples to show.
        transform: makes such a sample.
        training: whose labels are counted.
        validation: likewise, and images to show with what is found in them.
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
        training: Annotations,
        validation: Annotations,
        model: Detector,
        imgsz: int,
        precision: Precision,
    ) -> None:
        self._folder = folder
        self._first_batch = first_batch
        self._transform = transform
        self._training = training
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
            rows = epochs_of(self._folder)
        with self._left_out("results.png"):
            plots.plot_results(rows, self._folder / "results.png")
        with self._left_out("PR_curve.png"):
            self._draw_pr_curves()
        with self._left_out("confusion_matrix.png"):
            self._draw_confusion()
        with self._left_out("labels.png"):
            splits = {"train": self._training, "val": self._validation}
            plot_labels(splits, self._names, self._folder / "labels.png")
        with self._left_out("train_samples.png"):
            self._draw_training_samples()
        with self._left_out("val_predictions.png"):
            self._draw_predictions()
        with self._left_out("worst_images.png"):
            self._draw_worst()
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
        path = html.write_report(self._folder, results, rows, self._names)
        log.info("report: %s", path)

    def _draw_pr_curves(self) -> None:
        if self._evaluation is not None:
            summary = self._evaluation.summary
            plots.plot_pr_curves(summary, self._names, self._folder / "PR_curve.png")

    def _draw_confusion(self) -> None:
        if self._evaluation is not None and self._evaluation.mistakes is not None:
            matrix = self._evaluation.mistakes.matrix
            plots.plot_confusion(matrix, self._names, self._folder / "confusion_matrix.png")

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
        """Validation images spread over the set, with what is found in them."""
        count = len(self._validation)
        chosen = np.linspace(0, count - 1, min(SHOWN_IMAGES, count)).astype(int).tolist()
        images, found = self._predicted(chosen)
        plots.plot_samples(
            images,
            [d.boxes_xyxy.cpu().numpy() for d in found],
            [d.classes.cpu().numpy() for d in found],
            [d.scores.cpu().numpy() for d in found],
            self._names,
            self._folder / "val_predictions.png",
            caption=""
            if any(len(d.scores) for d in found)
            else f"no detection of confidence {SHOWN_CONFIDENCE} or more",
        )

    def _draw_worst(self) -> None:
        """Of the images with most mistakes, what is labelled beside what is found."""
        mistakes = self._evaluation.mistakes if self._evaluation is not None else None
        if mistakes is None or not len(mistakes.images):
            return
        worst = mistakes.images[:SHOWN_WORST].tolist()
        images, found = self._predicted([index for index, _, _ in worst])
        boxes, classes, scores, titles = [], [], [], []
        for (index, false, missed), d in zip(worst, found, strict=True):
            record = self._validation.records[index]
            boxes += [record.boxes_xyxy, d.boxes_xyxy.cpu().numpy()]
            classes += [record.classes, d.classes.cpu().numpy()]
            scores += [None, d.scores.cpu().numpy()]
            titles += ["labelled", f"found: {false} false, {missed} missed"]
        twice = [image for image in images for _ in range(2)]
        out = self._folder / "worst_images.png"
        plots.plot_samples(twice, boxes, classes, scores, self._names, out, titles=titles)

    def _predicted(self, chosen: Sequence[int]) -> tuple[list[Any], list[Detections]]:
        """Validation images and what the model finds in them.

        Raises:
            ImageError: one cannot be read any more.
        """
        images = [read_image(self._validation.nearest_file(i)) for i in chosen]
        with torch.no_grad():
            found = predict_images(
                self._model, images, self._imgsz, self._precision, conf_threshold=SHOWN_CONFIDENCE
            )
        return images, found
