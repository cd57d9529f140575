"""Exported files of other trainers: what their metadata says, and their one output as boxes and scores.

Facts about them, as their files show: there is one output; ``names`` and ``imgsz`` are texts as Python prints
a dict and a list; YOLOv5 writes ``stride`` and ``names`` alone.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.text import one_line, unwarned
from horovod_yolo.core.types import Floats
from horovod_yolo.export.about import LARGEST_SIDE_PX, MOST_CLASSES, About
from horovod_yolo.export.running import Runner, Sides

ANCHORS = 3  # boxes of a place in the files of models with anchors
# Of the first and the last predictions of a model; between them each is twice the one before.
FINEST_STRIDES, COARSEST_STRIDES = (4, 8, 16), (32, 64)
USUAL_STRIDE = 32
_TEXT = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
_ENTRY = re.compile(rf"\s*(?:(?P<number>\d{{1,6}})\s*:\s*)?(?P<text>{_TEXT})\s*(?:,|$)")
_MODEL = re.compile(r"Ultralytics (\S+) model")  # in ``description``

Convert = Callable[[Floats], tuple[Floats, ...]]


@dataclass(frozen=True)
class Told:
    """What a file of others says of itself; None and empty: it does not say.

    Attributes:
        names: of the classes.
        imgsz: (height, width) of an input, pixels.
        stride: the sides of an input are multiples of it.
        model: its name.
        license: of the weights.
        gives_detections: not all boxes.
        suppresses: these have gone through suppression, at thresholds that it does not tell.
    """

    names: tuple[str, ...] = ()
    imgsz: tuple[int, int] | None = None
    stride: int = USUAL_STRIDE
    model: str = ""
    license: str = ""
    gives_detections: bool = False
    suppresses: bool = False


def told_by(texts: Mapping[str, str], where: object) -> Told:
    """What is in the metadata.

    Raises:
        UserError: it is of a model that finds no boxes, or makes no sense.
    """
    task = one_line(texts.get("task", "detect"))
    if task != "detect":
        raise UserError(f"it is a model for the task {task:.40}", where=where, fix="use one that finds boxes")
    suppresses = "'nms': True" in texts.get("args", "")
    try:
        described = _MODEL.match(texts.get("description", ""))
        return Told(
            names=_names(texts["names"]) if "names" in texts else (),
            imgsz=_imgsz(texts["imgsz"]) if "imgsz" in texts else None,
            stride=_whole(texts.get("stride", USUAL_STRIDE), 1024),
            model=one_line(described[1]).lower() if described else "",
            license=one_line(texts.get("license", "")),
            gives_detections=suppresses or texts.get("end2end") == "True",
            suppresses=suppresses,
        )
    except (ValueError, TypeError, RecursionError) as error:
        reason = one_line(str(error)) or type(error).__name__
        fix = "export it again"
        raise UserError(f"its metadata is damaged ({reason:.100})", where=where, fix=fix) from None


def _names(text: str) -> tuple[str, ...]:
    """``{0: 'cat', 1: "dog's"}`` or ``['cat', 'dog']``. It is read piece by piece: nesting costs nothing."""
    text = text.strip()
    if (text[:1], text[-1:]) not in (("{", "}"), ("[", "]")):
        raise ValueError("names")
    inside, names = text[1:-1].strip(), list[str]()
    place = 0
    while place < len(inside):
        entry = _ENTRY.match(inside, place)
        known = entry is not None and entry["number"] in (None, str(len(names)))
        if entry is None or not known or len(names) == MOST_CLASSES:
            raise ValueError(f"names, at {inside[place : place + 20]!r}")
        with unwarned():
            names.append(one_line(ast.literal_eval(entry["text"])))
        place = entry.end()
    if not names:
        raise ValueError("no names")
    return tuple(names)


def _imgsz(text: str) -> tuple[int, int]:
    """``[640, 640]``, or one number for both sides."""
    given = json.loads(text)
    height, width = given if isinstance(given, list) else (given, given)
    return _whole(height, LARGEST_SIDE_PX), _whole(width, LARGEST_SIDE_PX)


def _whole(given: object, most: int) -> int:
    number = int(given) if isinstance(given, str) else given
    if type(number) is not int or not 1 <= number <= most:
        raise ValueError(f"{given!r} is no size")
    return number


class ReadRunner:
    """A file of others, whose output is turned into what files of ours give. See `Runner`."""

    def __init__(self, runner: Runner, convert: Convert) -> None:
        self.texts: Mapping[str, str] = runner.texts
        self.sides: Sides = runner.sides
        self._runner, self._convert = runner, convert

    def __call__(self, images: Floats) -> tuple[Floats, ...]:
        """See `Runner`."""
        return self._convert(self._runner(images)[0])


def readable(runner: Runner, about: About, told: Told, where: object) -> Runner:
    """A file as one that gives boxes and scores, or detections; which of them shows when it is tried.

    Args:
        runner: the file.
        about: what is known of it: its classes and the size of an input.
        told: what it says of itself.
        where: it is, for messages.

    Raises:
        UserError: its outputs are of no known form, or it cannot be computed.
    """
    shape = (runner.sides[0] or 1, 3, *about.imgsz)
    outputs = runner(np.zeros(shape, np.float32))
    if len(outputs) == 2 and not told.names:
        return runner  # as files of ours: what uses them looks at the shapes
    classes, forms = len(about.names), ", ".join(str(one.shape) for one in outputs)
    if len(outputs) == 1 and outputs[0].ndim == 3 and outputs[0].dtype == np.float32:
        convert = _conversion(outputs[0].shape[1:], classes, about.imgsz, told.gives_detections)
        if convert:
            return ReadRunner(runner, convert)
    raise UserError(
        f"its outputs are {forms:.100} for inputs of {shape}; known are float32 (B, 4 + {classes} classes, N)"
        f", (B, N, 5 + {classes}) and detections (B, N, 6)",
        where=where,
        fix="use the checkpoint, or the data and size that it was exported for",
    )


def _conversion(
    form: tuple[int, ...], classes: int, imgsz: tuple[int, int], gives_detections: bool
) -> Convert | None:
    rows, columns = form
    places = _places(*imgsz) if not gives_detections else set[int]()
    if columns == 5 + classes and rows in {ANCHORS * count for count in places}:
        return _with_objectness
    if rows == 4 + classes and columns in places:
        return _by_column
    return _best_first if columns == 6 else None


def _places(height: int, width: int) -> set[int]:
    """How many places an input may have, by the strides that a model has."""
    found = set()
    for finest in FINEST_STRIDES:
        for coarsest in COARSEST_STRIDES:
            strides = [finest << step for step in range(coarsest.bit_length()) if finest << step <= coarsest]
            found.add(sum(-(-height // stride) * -(-width // stride) for stride in strides))
    return found


def _with_objectness(rows: Floats) -> tuple[Floats, Floats]:
    """(B, N, 5 + C): centre, size, objectness and the scores of classes."""
    return _corners(rows[..., :4]), rows[..., 5:] * rows[..., 4:5]


def _by_column(columns: Floats) -> tuple[Floats, Floats]:
    """(B, 4 + C, N): centre, size and the scores of classes."""
    rows = columns.transpose(0, 2, 1)
    return _corners(rows[..., :4]), np.ascontiguousarray(rows[..., 4:])


def _best_first(rows: Floats) -> tuple[Floats]:
    """(B, T, 6): corners, score, class."""
    order = np.argsort(-rows[..., 4], axis=1, kind="stable")
    return (np.take_along_axis(rows, order[..., None], axis=1),)


def _corners(boxes_xywh: Floats) -> Floats:
    centre, half = boxes_xywh[..., :2], boxes_xywh[..., 2:] / 2
    return np.concatenate((centre - half, centre + half), axis=-1)
