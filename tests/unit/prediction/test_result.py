"""Results as people use them, and their pictures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Image
from horovod_yolo.prediction.drawing import Style, colour_of, draw
from horovod_yolo.prediction.result import Boxes, Origin, Result

NAMES = {0: "cat", 1: "traffic light", 2: "собака"}


def result_of(rows: int = 100, columns: int = 200) -> Result:
    boxes = Boxes(
        torch.tensor([[20.0, 40.0, 60.0, 80.0], [100.0, 50.0, 180.0, 90.0]]),
        torch.tensor([0.9, 0.5]),
        torch.tensor([2, 0]),
        (rows, columns),
    )
    return Result(boxes, NAMES, Origin("x.jpg"), image=np.full((rows, columns, 3), 128, np.uint8))


def test_boxes_in_every_format() -> None:
    boxes = result_of().boxes
    assert boxes.xywh.tolist() == [[40, 60, 40, 40], [140, 70, 80, 40]]
    assert boxes.xyxyn.tolist() == pytest.approx(np.array([[0.1, 0.4, 0.3, 0.8], [0.5, 0.5, 0.9, 0.9]]))
    assert boxes.xywhn.tolist() == pytest.approx(np.array([[0.2, 0.6, 0.2, 0.4], [0.7, 0.7, 0.4, 0.4]]))
    assert [(len(one), int(one.cls), one.xyxy.shape) for one in boxes] == [(1, 2, (1, 4)), (1, 0, (1, 4))]
    assert float(boxes[-1].conf) == 0.5 and len(boxes[:1]) == 1 and len(boxes[boxes.conf > 0.6]) == 1
    with pytest.raises(IndexError):
        boxes[2]
    empty = boxes[boxes.conf > 1]
    assert len(empty) == 0 and list(empty) == [] and empty.xywhn.shape == (0, 4)


def test_earlier_names_are_the_same_things() -> None:
    result = result_of()
    assert result.boxes_xyxy is result.boxes.xyxy
    assert result.scores is result.boxes.conf
    assert result.classes is result.boxes.cls
    assert len(result) == 2 and [int(box.cls) for box in result] == [2, 0]
    assert (result.path, result.orig_shape) == ("x.jpg", (100, 200))


def test_plot_is_a_new_bgr_picture_and_save_writes_it(tmp_path: Path) -> None:
    result = result_of()
    drawn = result.plot(line_thickness=1)
    assert drawn.shape == (100, 200, 3) and drawn.dtype == np.uint8
    assert tuple(drawn[60, 20]) == colour_of(2) and tuple(drawn[60, 180]) == colour_of(0)
    assert (result.pixels() == 128).all()
    result.save(tmp_path / "found.png", line_thickness=1)
    assert np.array_equal(cv2.imread(str(tmp_path / "found.png")), drawn)
    with pytest.raises(UserError, match=r"found\.xyz: a picture of 200x100 pixels cannot be written so"):
        result.save(tmp_path / "found.xyz")
    with pytest.raises(UserError, match="cannot be written"):
        result.save(tmp_path / "none" / "found.png")
    without = Result(result.boxes, NAMES, Origin("clip.mp4", 0, 3))
    with pytest.raises(UserError, match=r"clip\.mp4: the pixels of this image were not kept.*stream=True"):
        without.plot()


def drawn(
    size: tuple[int, int], box: tuple[float, ...], number: int = 0, style: Style | None = None
) -> Image:
    canvas = np.zeros((*size, 3), np.uint8)
    draw(canvas, np.array([box]), np.array([number]), np.array([0.87]), NAMES, style or Style())
    return canvas


@pytest.mark.parametrize("size", [(100, 100), (480, 640), (3000, 4000)])
def test_a_label_is_readable_and_in_proportion_at_every_size(size: tuple[int, int]) -> None:
    """Ten pixels at least, a tenth of the picture at most."""
    rows, columns = size
    box = (0.3 * columns, 0.4 * rows, 0.8 * columns, 0.9 * rows)
    with_label, without = drawn(size, box), drawn(size, box, style=Style(labels=False))
    changed = (with_label != without).any(axis=2)
    high, wide = changed.any(axis=1).sum(), changed.any(axis=0).sum()
    assert 10 <= high <= max(14, rows / 20) and wide <= columns
    assert high > rows / 50
    ink = with_label[changed].min(axis=1) > 150
    assert 0.02 < ink.mean() < 0.5


@pytest.mark.parametrize(
    "box", [(0, 0, 99, 99), (90, 95, 99, 99), (-20, -30, 20, 20), (0, 99, 99, 99), (50, 0, 50, 0)]
)
def test_labels_stay_inside(box: tuple[float, ...]) -> None:
    """Also where a box is at the border, beyond it, or empty; the whole text is there."""
    free = drawn((100, 100), (10, 50, 60, 90), 1, Style(1))
    inside = drawn((100, 100), box, 1, Style(1))
    white = [int((picture == 255).all(axis=2).sum()) for picture in (free, inside)]
    assert white[0] == white[1] > 20


def test_a_box_as_large_as_the_picture_is_seen_on_all_sides() -> None:
    picture = drawn((100, 120), (0, 0, 120, 100), style=Style(1, labels=False))
    for line in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (line == colour_of(0)).all()


def test_pictures_of_a_few_pixels_are_drawn_on() -> None:
    for size in ((1, 1), (3, 200), (200, 3), (8, 8)):
        assert drawn(size, (0, 0, size[1], size[0]), 1).any()


def test_a_class_has_its_colour_and_neighbours_have_others() -> None:
    colours = [colour_of(number) for number in range(80)]
    assert len(set(colours)) == 80 and colours == [colour_of(number) for number in range(80)]
    for one, other in pairwise(colours):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 90


def test_what_is_hidden_is_not_drawn() -> None:
    box = (10, 60, 150, 150)
    full, no_conf, nothing = (
        drawn((200, 200), box, 0, style) for style in (Style(), Style(conf=False), Style(labels=False))
    )
    areas = [(picture.any(axis=2)).sum() for picture in (full, no_conf, nothing)]
    assert areas[0] > areas[1] > areas[2]
