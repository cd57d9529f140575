"""Detections in images that belong to no data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Detections, Image
from horovod_yolo.data.letterbox import letterbox
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.suppression import Thresholds


def predict_images(
    model: Detector,
    images: Sequence[Image],
    imgsz: int,
    precision: Precision,
    *,
    conf_threshold: float = 0.25,
    iou_threshold: float = 0.45,
    max_detections: int = 300,
) -> list[Detections]:
    """Find objects, image by image; boxes are in pixels of the given images."""
    model.eval()
    thresholds = Thresholds(
        confidence=conf_threshold, iou=iou_threshold, most=max_detections, multi_label=False
    )
    results = []
    for image in images:
        canvas, fit = letterbox(image, imgsz, imgsz)
        x = torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)))[None]
        with torch.no_grad(), precision.autocast():
            predictions = model(x.to(precision.device, precision.of_weights) / 255)
        (found,) = model.detect(predictions, thresholds)
        results.append(Detections(fit.to_original(found.boxes_xyxy), found.scores, found.classes))
    return results
