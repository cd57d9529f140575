"""What an exported file says of itself: texts by name, the same in every format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from horovod_yolo import __version__
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.text import one_line
from horovod_yolo.models.suppression import Thresholds

AUTHOR = "horovod_yolo"
MOST_CLASSES = 100_000
LARGEST_SIDE_PX = 1 << 14


@dataclass(frozen=True, kw_only=True)
class About:
    """What a reader must know of an exported model, and what must travel with it.

    Attributes:
        model: its name in the zoo.
        names: of the classes, by number.
        stride: the sides of an input are multiples of it, pixels.
        imgsz: (height, width) of an input; of a dynamic file the usual one.
        batch: images of an input; 0: the file is dynamic, it takes any number and any size in whole strides.
        precision: of the weights: ``fp32``, ``fp16`` or ``int8``.
        head: which of the model's heads detects, where it has several.
        finds_once: what it finds needs no suppression.
        suppression: what is in the file of it; None: the file gives all boxes.
        license: of the weights it came from; empty where they began at random.
        data: the data.yaml trained on.
        class_map: pairs of names, as the run had them.
    """

    model: str
    names: tuple[str, ...]
    stride: int
    imgsz: tuple[int, int]
    batch: int = 0
    precision: str = "fp32"
    head: str = ""
    finds_once: bool = False
    suppression: Thresholds | None = None
    license: str = ""
    data: str = ""
    class_map: tuple[tuple[str, str], ...] = ()

    @property
    def dynamic(self) -> bool:
        """Whether it takes any number of images, of any size in whole strides."""
        return self.batch == 0

    def as_texts(self) -> dict[str, str]:
        """For the metadata of a file."""
        texts = {
            "author": AUTHOR,
            "version": __version__,
            "task": "detect",
            "model": self.model,
            "names": json.dumps(dict(enumerate(self.names)), ensure_ascii=False),
            "stride": str(self.stride),
            "imgsz": json.dumps(self.imgsz),
            "batch": str(self.batch),
            "dynamic": json.dumps(self.dynamic),
            "precision": self.precision,
            "head": self.head,
            "finds_once": json.dumps(self.finds_once),
            "nms": json.dumps(asdict(self.suppression)) if self.suppression else "",
            "license": self.license,
            "data": self.data,
            "class_map": json.dumps(self.class_map, ensure_ascii=False) if self.class_map else "",
        }
        return {key: text for key, text in texts.items() if text}

    @classmethod
    def of_texts(cls, texts: Mapping[str, str], where: object) -> About | None:
        """What the metadata of a file says; None where it was not exported here.

        Raises:
            UserError: it says so, but what it says makes no sense.
        """
        if texts.get("author") != AUTHOR:
            return None
        try:
            return cls._of_texts(texts)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            reason = one_line(str(error)) or type(error).__name__
            raise UserError(
                f"its metadata is damaged ({reason})", where=where, fix="export it again"
            ) from None

    @classmethod
    def _of_texts(cls, texts: Mapping[str, str]) -> About:
        names = _names(json.loads(texts["names"]))
        height, width = (_whole(side, "imgsz", 1, LARGEST_SIDE_PX) for side in json.loads(texts["imgsz"]))
        nms = texts.get("nms", "")
        return cls(
            model=one_line(texts["model"]),
            names=names,
            stride=_whole(int(texts["stride"]), "stride", 1, 1024),
            imgsz=(height, width),
            batch=_whole(int(texts["batch"]), "batch", 0, 1 << 16),
            precision=one_line(texts.get("precision", "fp32")),
            head=one_line(texts.get("head", "")),
            finds_once=json.loads(texts.get("finds_once", "false")) is True,
            suppression=_thresholds(json.loads(nms)) if nms else None,
            license=one_line(texts.get("license", "")),
            data=one_line(texts.get("data", "")),
            class_map=_pairs(json.loads(texts.get("class_map", "[]"))),
        )


def _names(given: Any) -> tuple[str, ...]:
    if not isinstance(given, dict) or not 1 <= len(given) <= MOST_CLASSES:
        raise ValueError("names")
    return tuple(one_line(given[str(number)]) for number in range(len(given)))


def _whole(given: Any, what: str, least: int, most: int) -> int:
    if type(given) is not int or not least <= given <= most:
        raise ValueError(what)
    return given


def _thresholds(given: Any) -> Thresholds:
    confidence, iou = (float(given[key]) for key in ("confidence", "iou"))
    if not (0 <= confidence <= 1 and 0 <= iou <= 1):
        raise ValueError("nms")
    return Thresholds(
        confidence=confidence,
        iou=iou,
        most=_whole(given["most"], "nms", 1, 1 << 20),
        multi_label=given["multi_label"] is True,
        agnostic=given["agnostic"] is True,
    )


def _pairs(given: Any) -> tuple[tuple[str, str], ...]:
    return tuple((one_line(old), one_line(new)) for old, new in given)
