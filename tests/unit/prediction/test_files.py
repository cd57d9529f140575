"""What a prediction writes: one video open at a time, formats that can be written, and errors of the disk."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from horovod_yolo.core.errors import UserError
from horovod_yolo.prediction.files import ResultFiles, Saving
from horovod_yolo.prediction.result import Boxes, Origin, Result


def result_of(path: str, source: int = 0, number: int = 0, *, live: bool = False, size: int = 32) -> Result:
    boxes = Boxes(torch.tensor([[4.0, 4.0, 20.0, 20.0]]), torch.tensor([0.5]), torch.tensor([0]), (size, 48))
    origin = Origin(path, source, number, fps=10.0 if number else 0.0, live=live)
    return Result(boxes, {0: "cat"}, origin, image=np.full((size, 48, 3), 99, np.uint8))


def frames_of(path: Path) -> int:
    """How many images a video has that is complete; 0 for one that is still being written."""
    opened = cv2.VideoCapture(str(path))
    count = int(opened.get(cv2.CAP_PROP_FRAME_COUNT)) if opened.isOpened() else 0
    opened.release()
    return count


def test_a_video_is_complete_when_the_next_begins_but_streams_go_on_side_by_side(tmp_path: Path) -> None:
    files = ResultFiles(tmp_path, ["a", "b", "c", "d"], Saving())
    for number in (1, 2):
        files.add(result_of("a.mp4", 0, number))
    files.add(result_of("b.mp4", 1, 1))
    assert frames_of(tmp_path / "a.mp4") == 2
    for number in (1, 2, 3):
        files.add(result_of("rtsp://h/c", 2, number, live=True))
        files.add(result_of("rtsp://h/d", 3, number, live=True))
    files.close()
    assert [frames_of(tmp_path / f"{name}.mp4") for name in "abcd"] == [2, 1, 3, 3]


def test_a_stream_that_comes_back_in_another_size_goes_on(tmp_path: Path) -> None:
    files = ResultFiles(tmp_path, ["c"], Saving())
    for number, size in ((1, 32), (2, 32), (3, 64)):
        files.add(result_of("rtsp://h/c", 0, number, live=True, size=size))
    files.close()
    assert frames_of(tmp_path / "c.mp4") == 3


@pytest.mark.parametrize(
    ("name", "written"),
    [("a.jpg", "a.jpg"), ("a.PNG", "a.PNG"), ("a.gif", "a.jpg"), ("a.pgm", "a.jpg"), ("image0", "a.jpg")],
)
def test_pictures_keep_their_format_where_it_can_be_written(tmp_path: Path, name: str, written: str) -> None:
    files = ResultFiles(tmp_path, ["a"], Saving())
    files.add(result_of(name))
    files.close()
    (path,) = tmp_path.iterdir()
    assert path.name == written and cv2.imread(str(path)).shape == (32, 48, 3)


@pytest.mark.parametrize("saving", [Saving(), Saving(txt=True), Saving(crops=True)])
def test_what_cannot_be_written_is_named(tmp_path: Path, saving: Saving) -> None:
    """A file where the folder was."""
    (tmp_path / "exp").write_text("")
    files = ResultFiles(tmp_path / "exp", ["a"], saving)
    with pytest.raises(UserError, match=r"exp/.*: cannot be written \(Not a directory\)"):
        files.add(result_of("a.jpg"))
    files.close()


def test_a_video_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    files = ResultFiles(tmp_path / "gone", ["a"], Saving())
    with pytest.raises(UserError, match=r"gone/a\.mp4: OpenCV cannot write this video"):
        files.add(result_of("a.avi", 0, 1))
    files.close()
