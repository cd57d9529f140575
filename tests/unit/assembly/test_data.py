"""What a run makes of its annotations before training begins."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from horovod_yolo.assembly.data import say_what_counts
from horovod_yolo.assembly.model import new_model
from horovod_yolo.data.annotations import Annotations, Record

from .test_run import settings


def image(name: str, objects: int, crowds: int) -> Record:
    count = objects + crowds
    boxes_xyxy = np.tile(np.array([0, 0, 4, 4], np.float32), (count, 1))
    crowd = np.arange(count) >= objects
    return Record(name, 9, 9, np.zeros(count, np.int64), boxes_xyxy, crowd, np.ones(count, np.float32), name)


def test_images_with_more_objects_than_detections_count_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = Annotations.of(tmp_path, ["a"], [image("a", 5, 0), image("b", 3, 9), image("c", 0, 0)])
    for most, lines in ((5, 1), (4, 2)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            say_what_counts(found, most)
        assert len(caplog.messages) == lines
        assert caplog.messages[0] == f"validation counts up to {most} detections an image"
    assert caplog.messages[1] == "1 images have more than 4 objects (up to 5): not all of them can be found"


def test_anchors_are_not_fitted_on_crowds(tmp_path: Path) -> None:
    """Large regions beside objects that the usual anchors do not fit, as crowds and as objects."""

    def anchors(large: int, *, crowds: bool) -> list[object]:
        rng = np.random.default_rng(0)
        wh = np.concatenate([rng.uniform(2, 3, (60, 2)), rng.uniform(500, 600, (large, 2))]).astype(
            np.float32
        )
        crowd = (np.arange(len(wh)) >= 60) & crowds
        classes, boxes_xyxy = np.zeros(len(wh), np.int64), np.concatenate([np.zeros_like(wh), wh], 1)
        record = Record("a", 640, 640, classes, boxes_xyxy, crowd, wh.prod(1), "a")
        model = new_model(settings(tmp_path, imgsz=640), Annotations.of(tmp_path, ["a"], [record]))
        return model.head.state_dict()["anchors"].flatten().tolist()

    small = anchors(0, crowds=True)
    assert anchors(40, crowds=True) == small
    assert anchors(40, crowds=False) != small
