"""Small data sets in memory for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from horovod_yolo.core.boxes import area
from horovod_yolo.core.types import Image
from horovod_yolo.data.annotations import Annotations, Record

RED = (255, 0, 0)


@dataclass(frozen=True)
class Scenes:
    """Annotations and their images, as a cache would hold them."""

    annotations: Annotations
    images: tuple[Image, ...]

    def load(self, position: int) -> Image:
        return self.images[position]


def scenes(images: list[Image], classes: list[Any], boxes: list[Any], crowds: list[Any]) -> Scenes:
    """Put images and their objects, given as arrays, into annotations."""
    records = []
    for i, (image, c, b, crowd) in enumerate(zip(images, classes, boxes, crowds, strict=True)):
        boxes_xyxy = np.asarray(b, np.float32).reshape(-1, 4)
        height, width = image.shape[:2]
        areas = np.asarray(area(boxes_xyxy), np.float32)
        records.append(
            Record(f"{i}.png", height, width, np.asarray(c, np.int64), boxes_xyxy, crowd, areas, i)
        )
    return Scenes(Annotations.of(Path("memory"), "abcdefgh", records), tuple(images))


def noise_scenes(count: int = 12, seed: int = 0) -> Scenes:
    """Images of noise of many shapes with 0 to 5 random boxes, some of them crowds."""
    rng = np.random.default_rng(seed)
    images, classes, boxes, crowds = [], [], [], []
    for _ in range(count):
        height, width = rng.integers(60, 200, 2).tolist()
        n = int(rng.integers(0, 6))
        corner = rng.uniform(0, 0.5, (n, 2)) * (width, height)
        images.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        classes.append(rng.integers(0, 3, n))
        boxes.append(np.hstack((corner, corner + rng.uniform(0.1, 0.5, (n, 2)) * (width, height))))
        crowds.append(rng.random(n) < 0.2)
    return scenes(images, classes, boxes, crowds)


def painted_scenes(count: int = 8, seed: int = 0) -> Scenes:
    """Black images, each with one red rectangle, a box exactly around it and a class of its own."""
    rng = np.random.default_rng(seed)
    images, boxes = [], []
    for _ in range(count):
        height, width = rng.integers(120, 260, 2).tolist()
        x1, y1 = (int(rng.integers(0, side // 2)) for side in (width, height))
        x2, y2 = (first + int(rng.integers(40, side // 2)) for first, side in ((x1, width), (y1, height)))
        image = np.zeros((height, width, 3), np.uint8)
        image[y1:y2, x1:x2] = RED
        images.append(image)
        boxes.append([x1, y1, x2, y2])
    return scenes(images, [[i] for i in range(count)], boxes, [np.zeros(1, bool)] * count)
