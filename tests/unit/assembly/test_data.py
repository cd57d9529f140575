"""What a run makes of its annotations before training begins."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from horovod_yolo.assembly.data import say_what_counts
from horovod_yolo.assembly.data_tools import ConvertOptions, convert_data
from horovod_yolo.assembly.model import new_model
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.conversion import Kind
from horovod_yolo.data.read import read_image
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.data.subset import share_of
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.packs import pack
from tests.helpers.scanned import annotations_of

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


def test_a_fraction_of_the_images_is_chosen_by_their_names(digits: Path, tmp_path: Path) -> None:
    """A part of a larger part, whatever the ranks and other images; and a run of a pack has the same."""
    whole = annotations_of(load_data_yaml(digits))
    packed = annotations_of(load_data_yaml(pack(digits, tmp_path / "packed")))
    assert share_of(whole, 1.0, 0) is whole
    small, large = (share_of(whole, fraction, 3) for fraction in (0.4, 0.7))
    names = [{record.path for record in of.records} for of in (small, large, whole)]
    assert names[0] < names[1] < names[2] and len(small) in range(7, 17)
    assert share_of(packed, 0.4, 3).digest == small.digest != share_of(whole, 0.4, 4).digest
    for of in (small, share_of(packed, 0.4, 3)):
        of = pickle.loads(pickle.dumps(of))
        for i, record in enumerate(of.records):
            (place,) = [k for k in range(len(whole)) if whole.path(k) == record.path]
            assert of.marks[i] == whole.marks[place]
            assert np.array_equal(record.boxes_xyxy, whole.record(place).boxes_xyxy)
            assert np.array_equal(read_image(of.image_file(i)), read_image(whole.image_file(place)))


def test_a_fraction_without_objects_is_one_line(tmp_path: Path) -> None:
    whole = Annotations.of(tmp_path, ["a"], [image("a", 0, 0), image("b", 0, 0)])
    with pytest.raises(UserError, match="--fraction 1e-09: none of the 1 images has an object"):
        share_of(whole, 1e-9, 0)


@pytest.mark.parametrize("kind", ["yolo", "coco", "voc"])
def test_all_classes_are_one_with_single_cls(digits: Path, tmp_path: Path, kind: Kind) -> None:
    convert_data(ConvertOptions(data=str(digits), to=kind, out=tmp_path / kind), LocalCommunicator())
    spec = load_data_yaml(tmp_path / kind / "data.yaml")
    whole, single = annotations_of(spec), annotations_of(spec.single_class())
    assert single.names == ("item",) and set(single.classes.tolist()) == {0}
    assert np.array_equal(single.boxes_xyxy, whole.boxes_xyxy)
    assert annotations_of(spec.for_classes(("item",), "the model")).digest == single.digest
