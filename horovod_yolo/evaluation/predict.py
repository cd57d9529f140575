"""Detections in images that belong to no data set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Detections, Image, Letterbox
from horovod_yolo.data.letterbox import least_input, letterbox
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.suppression import Thresholds

MOST_WAITING = 4  # batches' worth of inputs that wait for more of their shape; bounds the memory


@dataclass(frozen=True)
class _Input:
    place: int  # among the given images
    pixels: Image
    fit: Letterbox


def predict_images(
    model: Detector,
    images: Iterable[Image],
    imgsz: int,
    precision: Precision,
    *,
    rect: bool = True,
    batch: int = 8,
    conf_threshold: float = 0.25,
    iou_threshold: float = 0.45,
    max_detections: int = 300,
) -> list[Detections]:
    """Find objects: one result an image, in the order given; boxes are in pixels of the given images.

    Args:
        model: on the device and with the weights that ``precision`` names.
        images: read one by one; no more than ``MOST_WAITING`` batches of inputs are kept.
        imgsz: longest side of an image in the network's input, a multiple of the coarsest stride.
        precision: of the forward pass.
        rect: inputs are the smallest rectangles of whole strides, as in YOLOv5, not squares.
        batch: images of one shape that go through the network at once.
        conf_threshold: least score of a detection.
        iou_threshold: boxes of a class that overlap more are one.
        max_detections: of an image.
    """
    model.eval()
    thresholds = Thresholds(
        confidence=conf_threshold, iou=iou_threshold, most=max_detections, multi_label=False
    )
    results: dict[int, Detections] = {}
    for inputs in _batches(_inputs(images, imgsz, max(model.strides) if rect else imgsz), batch):
        pixels = torch.from_numpy(np.stack([one.pixels for one in inputs])).permute(0, 3, 1, 2)
        with torch.no_grad(), precision.autocast():
            predictions = model(precision.inputs(pixels))
        for one, found in zip(inputs, model.detect(predictions, thresholds), strict=True):
            boxes_xyxy = one.fit.to_original(found.boxes_xyxy)
            results[one.place] = Detections(boxes_xyxy, found.scores, found.classes)
    return [results[place] for place in range(len(results))]


def _inputs(images: Iterable[Image], imgsz: int, stride: int) -> Iterator[_Input]:
    """With ``stride`` equal to ``imgsz`` all are squares."""
    for place, image in enumerate(images):
        rows, columns = image.shape[:2]
        yield _Input(place, *letterbox(image, *least_input(rows, columns, imgsz, stride)))


def _batches(inputs: Iterable[_Input], size: int) -> Iterator[list[_Input]]:
    """Up to ``size`` inputs of one shape each; where many wait, the commonest shape goes first."""
    waiting: defaultdict[tuple[int, ...], list[_Input]] = defaultdict(list)
    for one in inputs:
        group = waiting[one.pixels.shape]
        group.append(one)
        if len(group) == size:
            yield waiting.pop(one.pixels.shape)
        elif sum(map(len, waiting.values())) == size * MOST_WAITING:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()
