"""Detections in images that belong to no data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from horovod_yolo.core.types import Detections, Image
from horovod_yolo.data.letterbox import letterbox
from horovod_yolo.models.decode import decode, non_max_suppression
from horovod_yolo.models.head import Detector
from horovod_yolo.training.step import Precision


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
    results = []
    for image in images:
        canvas, fit = letterbox(image, imgsz, imgsz)
        x = torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)))[None]
        with torch.no_grad(), precision.autocast():
            raw = model(x.to(precision.device, precision.of_weights) / 255)
        decoded = decode([level.float() for level in raw], model.anchors_px, model.strides)
        found = non_max_suppression(decoded, conf_threshold, iou_threshold, max_detections, multi_label=False)
        results.append(Detections(fit.to_original(found[0].boxes_xyxy), found[0].scores, found[0].classes))
    return results
