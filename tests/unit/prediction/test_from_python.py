"""``YOLO(...).predict`` with every kind of source, at once and one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from horovod_yolo.api import YOLO
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.read import read_image
from horovod_yolo.prediction.window import _has_windows, require_window
from tests.helpers.pictures import random_picture, write_picture_file, write_video
from tests.helpers.untrained import NAMES, write_untrained

LOW: dict[str, Any] = {"conf": 1e-6, "max_det": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> YOLO:
    return YOLO(write_untrained(tmp_path_factory.mktemp("weights") / "best.pt"))


def test_a_stream_gives_results_one_by_one_as_images_are_taken(model: YOLO) -> None:
    taken = 0

    def images() -> Iterator[Any]:
        nonlocal taken
        for seed in range(6):
            taken += 1
            yield random_picture(seed)

    results = model.predict(images(), stream=True, batch=2, **LOW)
    assert taken == 0
    first = next(results)
    assert taken == 2 and first.path == "image0" and len(first) == 3
    assert [result.path for result in results] == [f"image{i}" for i in range(1, 6)]


def test_results_know_names_shapes_files_and_times(model: YOLO, tmp_path: Path) -> None:
    path = write_picture_file(tmp_path / "a.png", 1, 60, 80)
    (result,) = model.predict(path, **LOW)
    assert result.names == dict(enumerate(NAMES))
    assert (result.path, result.orig_shape) == (str(path), (60, 80))
    assert set(result.speed) == {"preprocess", "inference"} and min(result.speed.values()) >= 0
    assert result.image is None  # a list of many results must not hold all their pixels
    assert np.array_equal(result.pixels(), read_image(path))
    assert not np.array_equal(result.plot(), read_image(path)[..., ::-1])
    (array,) = model.predict(read_image(path), **LOW)
    assert torch.equal(array.boxes.xyxy, result.boxes.xyxy) and np.array_equal(array.plot(), result.plot())


def test_videos_and_globs(model: YOLO, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.avi", 5)
    write_picture_file(tmp_path / "a.jpg", 1)
    results = model.predict(clip, vid_stride=2, **LOW)
    assert [(result.origin.number, result.image) for result in results] == [(1, None), (3, None), (5, None)]
    with pytest.raises(UserError, match="stream=True"):
        results[0].plot()
    drawn = [result.plot() for result in model.predict(str(clip), stream=True, **LOW)]
    assert [picture.shape for picture in drawn] == [(48, 64, 3)] * 5
    everything = model.predict(str(tmp_path / "*"), **LOW)
    assert [Path(result.path).name for result in everything] == ["a.jpg", *["clip.avi"] * 5]


@pytest.mark.parametrize("name", ["none.avi", "text.avi"])
def test_a_broken_video_is_named(model: YOLO, tmp_path: Path, name: str) -> None:
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(UserError, match=rf"{name}: (no such file|OpenCV can read no image of this video)"):
        model.predict(tmp_path / name, **LOW)


def test_a_video_that_is_cut_off_is_named(
    model: YOLO, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = write_video(tmp_path / "whole.avi", 40)
    assert len(model.predict(whole, **LOW)) == 40 and not caplog.records
    data = whole.read_bytes()
    (tmp_path / "short.avi").write_bytes(data[: len(data) // 2])
    seen = len(model.predict(tmp_path / "short.avi", **LOW))
    assert 5 < seen < 30
    assert f"short.avi: cut off or damaged: {seen} of 40 images could be read" in caplog.text


def test_cameras_and_streams_need_to_be_asked_for_one_by_one(model: YOLO) -> None:
    for source in (0, "0", "rtsp://127.0.0.1:1/x"):
        with pytest.raises(UserError, match=r"a camera or stream has no end\. use stream=True"):
            model.predict(source, **LOW)
    with pytest.raises(UserError, match=r"rtsp://127\.0\.0\.1:1/x: this stream cannot be opened"):
        next(model.predict("rtsp://u:p@127.0.0.1:1/x", stream=True, **LOW))
    assert threading.active_count() == len([t for t in threading.enumerate() if "frames of" not in t.name])


def test_options_are_those_of_the_command(model: YOLO) -> None:
    image = random_picture(3)
    everything = model.predict(image, conf=1e-6, max_det=300, device="cpu")[0]
    classes = set(everything.classes.tolist())
    wanted = classes.pop()
    only = model.predict(image, conf=1e-6, max_det=300, classes=wanted, device="cpu")[0]
    assert classes and set(only.classes.tolist()) == {wanted}
    apart = model.predict(image, conf=1e-6, max_det=300, iou=0.1, device="cpu")[0]
    alike = model.predict(image, conf=1e-6, max_det=300, iou=0.1, agnostic_nms=True, device="cpu")[0]
    assert 0 < len(alike) < len(apart) < len(everything)
    views = model.predict(image, conf=1e-6, max_det=300, augment=True, device="cpu")[0]
    assert len(views) and not torch.equal(views.scores[:3], everything.scores[:3])
    for option, message in (
        ({"classes": [9]}, "--classes names 9"),
        ({"classes": "cat"}, "classes is 'cat'. give class numbers"),
        ({"vid_stride": 0}, "vid_stride is 0"),
        ({"augment": 1}, "augment is 1"),
        ({"half": True}, "--half needs a GPU"),
        ({"save": True}, r"save is not supported. call save\(path\)"),
        ({"visualize": True}, "visualize is not supported"),
    ):
        with pytest.raises(UserError, match=message):
            model.predict(image, device="cpu", **option)


def test_windows_need_an_opencv_that_has_them_and_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _has_windows("  GUI:                           NONE\n")
    assert _has_windows("  GUI:                           QT5\n    QT:     YES\n")
    with pytest.raises(UserError, match=r"opencv-python-headless cannot open windows\. pip uninstall"):
        require_window()
    monkeypatch.setattr("cv2.getBuildInformation", lambda: "GUI:  GTK3")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="there is no display here"):
        require_window()
