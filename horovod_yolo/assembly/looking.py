"""A trained model made ready to look at images that belong to no data set."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from horovod_yolo.assembly.device import arithmetic, choose_precision
from horovod_yolo.assembly.input_size import round_to_stride
from horovod_yolo.config.keywords import prediction_options
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Detections
from horovod_yolo.families.zoo import recipe_of
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.prediction.frames import Placed, file_frames
from horovod_yolo.prediction.live import LiveStream, newest_frames
from horovod_yolo.prediction.network import Network
from horovod_yolo.prediction.predict import Finder, Sizes, detect
from horovod_yolo.prediction.result import Result
from horovod_yolo.prediction.sources import Live, Source

MOST_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class Looking:
    """How to look at images.

    Attributes:
        imgsz: longest side of an image in the network's input, pixels; 0: as trained.
        rect: inputs are the smallest rectangles of whole strides, not squares.
        batch: images of one shape that go through the network at once.
        precision: of the network; ``auto`` is fp16 on GPUs and fp32 on CPUs.
        half: fp16, or an error where there is no GPU.
        thresholds: what counts as a detection, but for the overlap.
        iou: by which two boxes of a class may overlap; None: as the model's family has it.
        classes: numbers of those that count; empty: all.
        augment: look at each image in three sizes, once mirrored.
    """

    imgsz: int = 0
    rect: bool = True
    batch: int = 8
    precision: str = "auto"
    half: bool = False
    thresholds: Thresholds
    iou: float | None = None
    classes: tuple[int, ...] = ()
    augment: bool = False

    def thresholds_for(self, usual_iou: float) -> Thresholds:
        """What counts as a detection, where boxes of a class may usually overlap so far."""
        return replace(self.thresholds, iou=usual_iou if self.iou is None else self.iou)


@dataclass(frozen=True)
class Ready:
    """What `detect` needs."""

    find: Finder
    names: dict[int, str]
    sizes: Sizes


def make_ready(
    trained: tuple[Detector, TrainConfig, Sequence[str]], device: torch.device, how: Looking
) -> Ready:
    """Move a `trained_model` to its device and set it up.

    Raises:
        UserError: a class that it does not know, or a number format that the device has not.
    """
    model, config, names = trained
    require_classes(how.classes, names)
    if how.half and device.type == "cpu":
        raise UserError("--half needs a GPU, this is a CPU", fix="leave it out, or use --precision bf16")
    name = "fp16" if how.half else how.precision
    precision = choose_precision(name, device)
    thresholds = how.thresholds_for(recipe_of(model.name).iou_of_prediction)
    network = Network(model.to(device, precision.of_weights), precision, thresholds, how.classes, how.augment)
    side = round_to_stride(how.imgsz or config.imgsz, network.stride)
    return Ready(_Exactly(network, name), dict(enumerate(names)), Sizes(side, how.rect, how.batch))


def require_classes(numbers: Sequence[int], names: Sequence[str]) -> None:
    """Raise `UserError` where ``--classes`` names one that there is not."""
    for number in numbers:
        if not 0 <= number < len(names):
            known = ", ".join(f"{i} {name}" for i, name in enumerate(names[:MOST_NAMED]))
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            raise UserError(f"--classes names {number}", fix=f"the classes are {known}{more}")


@dataclass(frozen=True)
class _Exactly:
    """Computes in the number format that was asked for, and leaves the process's own as it is."""

    network: Network
    precision: str

    @property
    def stride(self) -> int:
        return self.network.stride

    def __call__(self, inputs: NDArray[np.uint8]) -> list[Detections]:
        with arithmetic(self.precision):
            return self.network(inputs)


def look_here(ready: Ready, sources: Iterable[Source], *, every: int, live: bool) -> Iterator[Result]:
    """What this process finds, source by source; cameras and streams last, all of them by turns.

    Args:
        ready: the network.
        sources: taken as they are needed.
        every: of so many images of a video the first counts.
        live: results come one by one: those of videos keep their pixels, and cameras and streams are taken.

    Raises:
        UserError: a source that cannot be used, when it is its turn.
    """
    lives: list[tuple[int, Live]] = []

    def files() -> Iterator[Placed]:
        for place, source in enumerate(sources):
            if not isinstance(source, Live):
                yield place, source
            elif live:
                lives.append((place, source))
            else:
                raise UserError("a camera or stream has no end", where=source.name, fix="use stream=True")

    frames = file_frames(files(), every=every)
    yield from detect(frames, ready.find, ready.sizes, ready.names, keep=live)
    if not lives:
        return
    with ExitStack() as until_the_end:
        news, streams = threading.Event(), []
        for place, source in lives:
            streams.append(LiveStream(source, place, news, every=every))
            until_the_end.callback(streams[-1].close)
        frames = newest_frames(streams, news)
        yield from detect(frames, ready.find, replace(ready.sizes, batch=1), ready.names, keep=True)


def looking_of(imgsz: int, options: dict[str, Any]) -> tuple[Looking, int]:
    """How to look, and of how many images of a video at one."""
    given = prediction_options(options)
    thresholds = Thresholds(
        confidence=given.get("conf_threshold", 0.25),
        most=given.get("max_detections", 300),
        multi_label=False,
        agnostic=given.get("agnostic_nms", False),
    )
    same = {name: given[name] for name in ("rect", "batch", "classes", "augment", "half") if name in given}
    how = Looking(imgsz=imgsz, thresholds=thresholds, iou=given.get("iou_threshold"), **same)
    return how, given.get("vid_stride", 1)
