"""Data sets of very many tiny images: names that share files, and annotations that are made up."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import PIL.Image

from horovod_yolo.core.types import Ints
from horovod_yolo.data.annotation_cache import AnnotationCache
from horovod_yolo.data.listing import list_entries, survey
from horovod_yolo.data.scan import CONTENT_BYTES
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.data.table import Table
from horovod_yolo.io.columns import ColumnFile

SIDE = 16  # pixels
CLASSES = 80
NAMES_OF_A_FILE = 1000  # file systems limit them
IMAGES_OF_A_FOLDER = 100_000


def make_images(folder: Path, count: int, boxes: int = 1) -> Path:
    """A data set whose images and label files are real, a thousand names to a file; its ``data.yaml``."""
    rng = np.random.default_rng(0)
    for start in range(0, count, IMAGES_OF_A_FOLDER):
        names = [f"{i:08}" for i in range(start, min(start + IMAGES_OF_A_FOLDER, count))]
        below = f"train/{start // IMAGES_OF_A_FOLDER:02}"
        for kind, end in (("images", ".jpg"), ("labels", ".txt")):
            place = folder / kind / below
            place.mkdir(parents=True)
            for first in range(0, len(names), NAMES_OF_A_FILE):
                file = place / (names[first] + end)
                if kind == "images":
                    PIL.Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(file)
                else:
                    file.write_text(_label_rows(rng, boxes))
                for name in names[first + 1 : first + NAMES_OF_A_FILE]:
                    os.link(file, place / (name + end))
    listed = ", ".join(f"c{i}" for i in range(CLASSES))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/train\nnames: [{listed}]\n")
    return folder / "data.yaml"


def _label_rows(rng: np.random.Generator, boxes: int) -> str:
    rows = zip(rng.integers(0, CLASSES, boxes), rng.uniform(0.3, 0.7, (boxes, 4)), strict=True)
    return "".join(f"{class_id} {' '.join(f'{value:.6f}' for value in box)}\n" for class_id, box in rows)


def pretend_scan(data: Path, cache: Path, boxes: int) -> ColumnFile:
    """Write the annotations that a scan would, with made-up objects, so that the next start finds them."""
    spec = load_data_yaml(data)
    surveyed = survey(list_entries(spec, "train"), spec, "train")
    table = _made_up(len(surveyed.entries), boxes)
    return AnnotationCache(cache).keep(surveyed, spec.root, "train", spec.names, table)


def _made_up(images: int, boxes: int) -> Table:
    rng = np.random.default_rng(0)
    ends: Ints = np.linspace(0, boxes, images + 1).astype(np.int64)[1:]
    corners = np.sort(rng.uniform(0, SIDE, (boxes, 2, 2)).astype(np.float32), axis=1).reshape(boxes, 4)
    sizes = np.full(images, SIDE, np.int32)
    return {
        "usable": np.ones(images, np.bool_),
        "height": sizes,
        "width": sizes,
        "image_content": rng.integers(1, 255, (images, CONTENT_BYTES), np.uint8),
        "label_content": rng.integers(1, 255, (images, CONTENT_BYTES), np.uint8),
        "object_end": ends,
        "class_id": rng.integers(0, CLASSES, boxes, np.int32),
        "box_xyxy": corners,
        "crowd": np.zeros(boxes, np.bool_),
        "area": (corners[:, 2:] - corners[:, :2]).prod(1),
        "problem_count": np.zeros(images, np.int32),
        "problem": np.empty(0, np.uint8),
        "problem_end": np.zeros(images, np.int64),
    }
