"""What data workers make in a second, for `gpu.py`: training samples of made-up JPEG files."""

from __future__ import annotations

import tempfile
import time
from itertools import chain, count
from pathlib import Path

import cv2
import numpy as np
import torch

from horovod_yolo.assembly.build import build_training_data
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.data.loader import Loader
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families.zoo import build_model

FILES, HEIGHT, WIDTH = 128, 480, 640  # much like COCO's
BOXES_AN_IMAGE, CLASSES = 7, 80


def images_per_s(model: str, size: int, batch: int, workers: int, seconds: float) -> float:
    """Images a second that so many workers make together, once they are under way."""
    comm = LocalCommunicator()
    with tempfile.TemporaryDirectory() as name:
        data = made_up_set(Path(name), max(FILES, batch))
        flags = {"cfg": model, "imgsz": size, "batch_size": batch, "cache_dir": name, "device": "cpu"}
        config = settings_of({"data": str(data), **flags})
        annotations = build_data(load_data_yaml(data), config, comm).train
        with torch.device("meta"):  # nothing but its strides is asked for
            network = build_model(model, 1)
        transform, sampler = build_training_data(config, annotations, comm, network)
        loader = Loader(transform, sampler, workers=workers, pin_memory=torch.cuda.is_available())
        batches = chain.from_iterable(loader.epoch(epoch, until=epoch + 2) for epoch in count())
        for _ in range(2 * workers + 1):  # what is made ahead
            next(batches)
        made, begun = 0, time.perf_counter()
        while made == 0 or time.perf_counter() - begun < seconds:
            made += len(next(batches))
        took = time.perf_counter() - begun
        loader.close()
    return made / took


def made_up_set(folder: Path, files: int) -> Path:
    """Pictures of soft colours with boxes on them; its ``data.yaml``."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number in range(files):
        coarse = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
        picture = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "images" / f"{number}.jpg"), picture)
        boxes = rng.uniform(0.3, 0.7, (BOXES_AN_IMAGE, 4))
        rows = (f"{number % CLASSES} {' '.join(f'{value:.6f}' for value in box)}\n" for box in boxes)
        (folder / "labels" / f"{number}.txt").write_text("".join(rows))
    data = folder / "data.yaml"
    names = ", ".join(f"c{number}" for number in range(CLASSES))
    data.write_text(f"train: images\nval: images\nnames: [{names}]\n")
    return data
