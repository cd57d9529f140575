"""An exported file held against the model it came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Decoded
from horovod_yolo.export.about import About
from horovod_yolo.export.running import Runner
from horovod_yolo.models.detector import Detector

STRIDES_SEEN = 3  # of the second input that a dynamic file is tried with, in each direction
LEAST_SCORE = 0.001  # of the boxes that are compared: others never count


class Tolerance(NamedTuple):
    """How far a file may be off."""

    scores: float
    boxes: float  # as a share of the input's longer side


TOLERANCE = {"fp32": Tolerance(1e-4, 1e-5), "fp16": Tolerance(1e-2, 2e-3)}


class Difference(NamedTuple):
    """How far a file is off at most."""

    scores: float
    boxes: float  # as a share of the input's longer side

    def __str__(self) -> str:
        return f"scores within {self.scores:.1e}, boxes within {self.boxes:.1e} of the input's side"


def difference(model: Detector, runner: Runner, about: About) -> Difference:
    """The most by which a file that gives all boxes differs from the model, on inputs made for that."""
    worst = Difference(0.0, 0.0)
    for images in example_inputs(about):
        with torch.no_grad():
            expected = model.head.decode(model(images))
        found = Decoded(*map(torch.from_numpy, runner(images.numpy())))
        scores = (found.scores - expected.scores).abs().amax()
        counts = expected.scores.amax(dim=2) > LEAST_SCORE
        boxes = (found.boxes_xyxy - expected.boxes_xyxy)[counts].abs()
        off = float(boxes.amax()) / max(images.shape[2:]) if len(boxes) else 0.0
        worst = Difference(max(worst.scores, float(scores)), max(worst.boxes, off))
    return worst


def require_close(found: Difference, about: About, what: str) -> None:
    """Raise `UserError` where a file does not compute what the model does; also where it gives no numbers."""
    allowed = TOLERANCE[about.precision]
    if not (found.scores <= allowed.scores and found.boxes <= allowed.boxes):
        raise UserError(
            f"the exported file does not give what the model gives: {found}; {allowed.scores:g} and "
            f"{allowed.boxes:g} are allowed. Nothing is written",
            where=what,
            fix="try another --opset, leave --simplify or --half out, or tell us",
        )


def example_inputs(about: About) -> Iterator[Tensor]:
    """(B, 3, H, W) in 0..1, always the same numbers: noise over a slope, so that not all places are alike.

    For a dynamic file a second input of another number and size.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [(about.batch or 2, *about.imgsz)]
    if about.dynamic:
        sizes.append((1, about.stride * STRIDES_SEEN, about.stride * (STRIDES_SEEN + 1)))
    for images, height, width in sizes:
        noise = torch.rand((images, 3, height, width), generator=generator)
        yield (noise + torch.linspace(0, 1, width)) / 2
