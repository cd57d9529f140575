"""Pictures and videos for prediction, made on the spot."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from horovod_yolo.core.types import Image


def random_picture(seed: int, rows: int = 48, columns: int = 64) -> Image:
    """Coloured blocks, always the same for a seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_NEAREST), np.uint8)


def write_picture_file(path: Path, seed: int, rows: int = 48, columns: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), random_picture(seed, rows, columns))
    return path


def write_video(path: Path, frames: int, fps: float = 10.0, rows: int = 48, columns: int = 64) -> Path:
    """Motion JPEG in an AVI: image k is grey, about 10 times k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (columns, rows))
    assert writer.isOpened()
    for k in range(frames):
        writer.write(np.full((rows, columns, 3), 10 * k % 256, np.uint8))
    writer.release()
    return path
