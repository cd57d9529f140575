"""Training samples as they are defined, in plain OpenCV and NumPy: the baseline of ``data.py``."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.augment import AugmentParams

BATCH = 16


@dataclass(frozen=True)
class Case:
    """What is measured: pictures of a set, the input's side in pixels, strengths of the augmentations."""

    annotations: Annotations
    size: int
    params: AugmentParams

    def paths(self, indices: np.ndarray) -> list[str]:
        """Of its pictures."""
        return [str(self.annotations.image_path(int(i))) for i in indices]


class PlainBatches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The straightforward pipeline's batches."""

    def __init__(self, case: Case, batches: int) -> None:
        self.case = case
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return plain_batch(np.random.default_rng(number), self.case)


def plain_batch(rng: np.random.Generator, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    samples = [plain_sample(rng, case) for _ in range(BATCH)]
    for place, (_, labels) in enumerate(samples):
        labels[:, 0] = place
    return (
        torch.from_numpy(np.stack([image for image, _ in samples])),
        torch.from_numpy(np.concatenate([labels for _, labels in samples])),
    )


def plain_sample(rng: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(3, size, size) RGB and (n, 6) rows of place, class and x, y, width, height as shares of the input."""
    size, params = case.size, case.params
    canvas, classes, boxes = plain_mosaic(rng, case)
    matrix, zoom = plain_matrix(rng, size, params)
    grey = (114, 114, 114)
    if params.perspective:
        image = cv2.warpPerspective(canvas, matrix, (size, size), borderValue=grey)
    else:
        image = cv2.warpAffine(canvas, matrix[:2], (size, size), borderValue=grey)
    corners = np.ones((len(boxes) * 4, 3))
    corners[:, :2] = boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 2)
    corners = corners @ matrix.T
    corners = (corners[:, :2] / corners[:, 2:]).reshape(-1, 4, 2)
    moved = np.concatenate((corners.min(1), corners.max(1)), 1).clip(0, size)
    before, after = ((each[:, 2:] - each[:, :2]) for each in (boxes * zoom, moved))
    keep = (after > 2).all(1) & (after.prod(1) > 0.1 * before.prod(1)) & (after.max(1) < 100 * after.min(1))
    classes, moved = classes[keep], moved[keep]

    hue, saturation, value = rng.uniform(-1, 1, 3) * (params.hsv_h, params.hsv_s, params.hsv_v) + 1
    levels = np.arange(256, dtype=np.float64)
    tables = [(levels * hue) % 180, (levels * saturation).clip(0, 255), (levels * value).clip(0, 255)]
    planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    changed = [cv2.LUT(plane, table.astype(np.uint8)) for plane, table in zip(planes, tables, strict=True)]
    image = cv2.cvtColor(cv2.merge(changed), cv2.COLOR_HSV2BGR)
    if rng.random() < params.fliplr:
        image = np.fliplr(image)
        moved[:, [0, 2]] = size - moved[:, [2, 0]]
    labels = np.zeros((len(moved), 6), np.float32)
    labels[:, 1] = classes
    labels[:, 2:4] = (moved[:, :2] + moved[:, 2:]) / 2 / size
    labels[:, 4:] = (moved[:, 2:] - moved[:, :2]) / size
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)), labels


def plain_mosaic(rng: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BGR canvas of twice the size, classes (n,), corners (n, 4)."""
    size = case.size
    canvas = np.full((2 * size, 2 * size, 3), 114, np.uint8)
    centre_x, centre_y = (int(v) for v in rng.uniform(size / 2, 1.5 * size, 2))
    classes, boxes = [], []
    for corner, i in enumerate(rng.integers(len(case.annotations), size=4).tolist()):
        record, image = case.annotations.record(i), cv2.imread(str(case.annotations.image_path(i)))
        gain = size / max(image.shape[:2])
        if gain != 1:
            image = cv2.resize(image, (round(image.shape[1] * gain), round(image.shape[0] * gain)))
        rows, columns = image.shape[:2]
        left = centre_x - (0 if corner % 2 else columns)
        top = centre_y - (0 if corner // 2 else rows)
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + columns, 2 * size), min(top + rows, 2 * size)
        canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
        classes.append(record.classes)
        boxes.append(record.boxes_xyxy * gain + np.array([left, top, left, top]))
    return canvas, np.concatenate(classes), np.concatenate(boxes).clip(0, 2 * size)


def plain_matrix(rng: np.random.Generator, size: int, params: AugmentParams) -> tuple[np.ndarray, float]:
    """From the canvas to the input, and the zoom."""
    centre, bend, slant, place = np.eye(3), np.eye(3), np.eye(3), np.eye(3)
    centre[:2, 2] = -size
    bend[2, :2] = rng.uniform(-params.perspective, params.perspective, 2)
    zoom = rng.uniform(1 - params.scale, 1 + params.scale)
    turn = np.vstack(
        (cv2.getRotationMatrix2D((0, 0), rng.uniform(-params.degrees, params.degrees), zoom), (0, 0, 1))
    )
    slant[0, 1], slant[1, 0] = np.tan(np.radians(rng.uniform(-params.shear, params.shear, 2)))
    place[:2, 2] = rng.uniform(0.5 - params.translate, 0.5 + params.translate, 2) * size
    return place @ slant @ turn @ bend @ centre, zoom
