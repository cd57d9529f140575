"""``horovod-yolo data stats``: a page of label statistics and sample pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from horovod_yolo.assembly.data import annotation_folder
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.config.class_map import ClassMap
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.letterbox import fitted_size
from horovod_yolo.data.listing import require_mapped
from horovod_yolo.data.read import ImageError, read_image
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.prediction.drawing import Style, draw
from horovod_yolo.report.statistics import Picture, write_statistics

SIDE = 640  # pixels that pictures fit in


@dataclass(frozen=True, kw_only=True)
class StatsOptions:
    """Flags of ``horovod-yolo data stats``."""

    data: str
    out: Path = Path("data_stats.html")
    pictures: int = 12
    seed: int = 0
    class_map: ClassMap = ()
    skip_bad_classes: bool = False
    cache_dir: str = ""

    def __post_init__(self) -> None:
        for name in ("pictures", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is {getattr(self, name)}", fix="it must be 0 or more")


def data_stats(options: StatsOptions, comm: Communicator) -> Path:
    """Scan all splits and write the page, whose path is returned. *Collective.*

    Raises:
        UserError: on all ranks alike.
    """
    rules = LabelRules(options.class_map, options.skip_bad_classes)
    file = Path(data_here(options.data, comm))
    spec = together(comm, lambda: load_data_yaml(file, rules))
    together(comm, lambda: require_mapped(spec))
    known = annotation_folder(options.cache_dir)
    splits = {split: shared_annotations(spec, split, comm, known) for split in spec.splits}
    on_rank_0(comm, lambda: _write(options, spec.file, splits))
    return options.out


def _write(options: StatsOptions, data: Path, splits: Mapping[str, Annotations]) -> None:
    pictures = [
        picture
        for i in chosen(splits["train"], options.pictures, options.seed)
        if (picture := _picture(splits["train"], i)) is not None
    ]
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_statistics(options.out, data.absolute(), splits, pictures)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise UserError(what, where=options.out, fix="give another file to --out") from error


def chosen(annotations: Annotations, most: int, seed: int) -> list[int]:
    """Images that show as many classes as so few can: from the rarest class on one image with each.

    Which one is that of the lowest hash of seed and path: the same on every machine.
    """
    image_of_object = np.repeat(np.arange(len(annotations)), annotations.counts)
    keys = [
        hashlib.sha256(f"{seed} ".encode() + os.fsencode(annotations.path(i))).digest()
        for i in range(len(annotations))
    ]
    counts = np.bincount(annotations.classes, minlength=len(annotations.names))
    found: dict[int, None] = {}
    for class_id in np.argsort(counts, kind="stable").tolist():
        images = np.unique(image_of_object[annotations.classes == class_id]).tolist()
        if images and found.keys().isdisjoint(images):
            found[min(images, key=keys.__getitem__)] = None
    for i in sorted(range(len(annotations)), key=keys.__getitem__):
        if len(found) < most:
            found[i] = None
    return list(found)[:most]


def _picture(annotations: Annotations, i: int) -> Picture | None:
    """An image with its boxes; None where it is gone since the scan."""
    try:
        image = read_image(annotations.image_file(i))
    except ImageError:
        return None
    record = annotations.record(i)
    height, width = fitted_size(record.height, record.width, SIDE, SIDE)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    canvas = np.ascontiguousarray(small[..., ::-1], np.uint8)
    boxes = record.boxes_xyxy * (np.array([width, height] * 2) / np.array([record.width, record.height] * 2))
    names = dict(enumerate(annotations.names))
    draw(canvas, boxes, record.classes, np.ones(len(boxes)), names, Style(conf=False))
    _, jpeg = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return Picture(record.path, jpeg.tobytes())
