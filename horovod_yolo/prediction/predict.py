"""From images to detections: the least inputs, in batches of one shape, results in the order given."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Detections, Image, Letterbox
from horovod_yolo.data.letterbox import least_input, letterbox
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.prediction.network import Network
from horovod_yolo.prediction.result import Boxes, Origin, Result

MOST_WAITING = 4  # batches' worth of inputs that wait for more of their shape; bounds the memory
MOST_BYTES_WAITING = 256 << 20  # of the images they were made from, where these are kept


class Finder(Protocol):
    """What maps inputs to detections: a network, or whatever stands for one."""

    @property
    def stride(self) -> int:
        """The sides of an input are multiples of it, pixels."""

    def __call__(self, inputs: NDArray[np.uint8]) -> list[Detections]:
        """(B, H, W, 3) RGB -> B results, best score first, boxes in pixels of the input."""


class Frame(NamedTuple):
    """An image to look into."""

    pixels: Image
    origin: Origin


@dataclass(frozen=True)
class Sizes:
    """How images become inputs.

    Attributes:
        imgsz: longest side of an image in the network's input, a multiple of the stride.
        rect: inputs are the smallest rectangles of whole strides, as in YOLOv5, not squares.
        batch: images of one shape that go through the network at once.
        shape: (height, width) of every input; it goes before ``imgsz`` and ``rect``.
    """

    imgsz: int
    rect: bool = True
    batch: int = 8
    shape: tuple[int, int] | None = None

    def of_input(self, image: Image, stride: int) -> tuple[int, int]:
        """(height, width) of the input for an image."""
        rows, columns = image.shape[:2]
        return self.shape or least_input(rows, columns, self.imgsz, stride if self.rect else self.imgsz)


@dataclass(frozen=True)
class _Input:
    place: int  # among the given images
    pixels: Image
    fit: Letterbox
    origin: Origin
    image: Image | None
    bytes_before: int  # of all images kept so far
    seconds: float  # that it took to make


def detect(
    frames: Iterable[Frame], find: Finder, sizes: Sizes, names: Mapping[int, str], *, keep: bool = False
) -> Iterator[Result]:
    """Find objects: one result an image, in the order given; boxes are in pixels of the given images.

    Images are taken as they are needed, and no more than ``MOST_WAITING`` batches of them wait.

    Args:
        frames: images and where they are from.
        find: the network.
        sizes: of its inputs.
        names: of the classes, by number.
        keep: results have the pixels of their images.
    """
    finished: dict[int, Result] = {}
    due = 0
    for inputs in _batches(_inputs(frames, sizes, find.stride, keep), sizes.batch):
        start = time.perf_counter()
        found = find(np.stack([one.pixels for one in inputs]))
        milliseconds = (time.perf_counter() - start) * 1000 / len(inputs)
        for one, detections in zip(inputs, found, strict=True):
            finished[one.place] = _result(one, detections, names, milliseconds)
        while due in finished:
            yield finished.pop(due)
            due += 1


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
    """`detect` with a model of ours, which must be on the device and have the weights ``precision`` names."""
    thresholds = Thresholds(
        confidence=conf_threshold, iou=iou_threshold, most=max_detections, multi_label=False
    )
    frames = (Frame(image, Origin()) for image in images)
    sizes = Sizes(imgsz, rect, batch)
    return [result.detections for result in detect(frames, Network(model, precision, thresholds), sizes, {})]


def _result(one: _Input, found: Detections, names: Mapping[int, str], milliseconds: float) -> Result:
    boxes = Boxes(
        one.fit.to_original(found.boxes_xyxy.cpu()),
        found.scores.cpu(),
        found.classes.cpu(),
        (one.fit.height, one.fit.width),
    )
    speed = {"preprocess": one.seconds * 1000, "inference": milliseconds}
    return Result(boxes, names, one.origin, speed, one.image)


def _inputs(frames: Iterable[Frame], sizes: Sizes, stride: int, keep: bool) -> Iterator[_Input]:
    kept = 0
    for place, (image, origin) in enumerate(frames):
        start = time.perf_counter()
        pixels, fit = letterbox(image, *sizes.of_input(image, stride))
        seconds = time.perf_counter() - start
        yield _Input(place, pixels, fit, origin, image if keep else None, kept, seconds)
        kept += image.nbytes if keep else 0


def _batches(inputs: Iterable[_Input], size: int) -> Iterator[list[_Input]]:
    """Up to ``size`` inputs of one shape each. None waits while many later ones go."""
    waiting: dict[tuple[int, ...], list[_Input]] = {}
    for one in inputs:
        shape = one.pixels.shape
        group = waiting.setdefault(shape, [])
        group.append(one)
        if len(group) == size:
            yield waiting.pop(shape)
        while waiting:
            oldest = min(waiting, key=lambda shape: waiting[shape][0].place)
            first = waiting[oldest][0]
            images, kept = one.place - first.place + 1, one.bytes_before - first.bytes_before
            if images < size * MOST_WAITING and kept < MOST_BYTES_WAITING:
                break
            yield waiting.pop(oldest)
    yield from waiting.values()
