"""Files as YOLOv5 and Ultralytics export them: the same boxes as from a file of ours, or one line.

The files are made here: outputs, names, sizes and metadata are like those of theirs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from horovod_yolo.assembly.exported import Asked, Opened, open_exported
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Detections
from horovod_yolo.export.about import About
from horovod_yolo.export.formats import read_exported
from horovod_yolo.export.of_others import Told, readable, told_by
from horovod_yolo.export.running import Runner
from horovod_yolo.models.suppression import Thresholds, best_of_each_place
from tests.helpers.exporting import NAMES, decoded, filled_model, pictures, same_detections
from tests.helpers.files_of_others import HEIGHT, OF_ULTRALYTICS, OF_V5, WIDTH, write_theirs

THRESHOLDS = Thresholds(confidence=0.3, iou=0.5, most=9)


def opened(path: Path, **asked: object) -> Opened:
    file = read_exported(path)
    assert file is not None
    return open_exported(file, torch.device("cpu"), Asked(**asked))  # type: ignore[arg-type]


def found_by(ready: Opened, inputs: Tensor) -> list[Detections]:
    return ready.finder(THRESHOLDS)(inputs.permute(0, 2, 3, 1).numpy())


def inputs_of(images: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return (pictures(images, height, width) * 255).round().to(torch.uint8)


def test_a_file_of_yolov5(tmp_path: Path) -> None:
    """It says nothing of its size, which is that of its input where that is fixed."""
    model, inputs = filled_model("yolov5n"), inputs_of(2)
    ready = opened(write_theirs(tmp_path / "best.onnx", model, "v5", OF_V5))
    assert (ready.about.names, ready.shape, ready.about.stride) == (NAMES, (HEIGHT, WIDTH), 32)
    assert ready.recipe.iou_of_validation == 0.6
    expected = model.head.suppress(decoded(model, inputs / 255), THRESHOLDS)
    assert all(len(one) for one in expected)
    same_detections(found_by(ready, inputs), expected)
    with pytest.raises(UserError, match=r"--imgsz 640, but its inputs are 96x64"):
        opened(tmp_path / "best.onnx", imgsz=640)
    with pytest.raises(UserError, match="--head one2many, but it was exported with the one head"):
        opened(tmp_path / "best.onnx", head="one2many")


def test_a_file_of_yolov5_of_any_size(tmp_path: Path) -> None:
    model, path = filled_model("yolov5n"), tmp_path / "best.onnx"
    write_theirs(path, model, "v5", OF_V5, dynamic=True)
    with pytest.raises(UserError, match=r"nor how it was exported\. say it: --imgsz 640$"):
        opened(path)
    ready = opened(path, imgsz=90)
    assert (ready.shape, ready.about.imgsz) == (None, (96, 96))
    for shape in ((2, 64, 96), (1, 128, 32)):
        inputs = inputs_of(*shape)
        expected = model.head.suppress(decoded(model, inputs / 255), THRESHOLDS)
        same_detections(found_by(ready, inputs), expected)


def test_a_file_of_ultralytics(tmp_path: Path) -> None:
    """Its description names the model, by which its family's recipe is known; its licence comes with it."""
    model, inputs = filled_model("yolov8n"), inputs_of(2)
    ready = opened(write_theirs(tmp_path / "best.onnx", model, "v8", OF_ULTRALYTICS))
    assert (ready.about.names, ready.shape) == (NAMES, (HEIGHT, WIDTH))
    assert ready.about.model == "yolov8n" and ready.recipe.iou_of_validation == 0.7
    assert ready.about.license == OF_ULTRALYTICS["license"]
    expected = model.head.suppress(decoded(model, inputs / 255), THRESHOLDS)
    assert all(len(one) for one in expected)
    same_detections(found_by(ready, inputs), expected)


def test_a_file_that_finds_each_object_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """YOLO26's, and one that suppresses by itself, of which a line says so. The order of rows is ours."""
    model, inputs = filled_model("yolo26n"), inputs_of(1)
    once = {**OF_ULTRALYTICS, "end2end": "True"}
    path = write_theirs(tmp_path / "best.onnx", model, "once", once)
    expected = best_of_each_place(decoded(model, inputs / 255), THRESHOLDS)
    ready = opened(path)
    found = found_by(ready, inputs)
    assert len(found[0]) == len(expected[0]) == THRESHOLDS.most
    assert found[0].scores[0] == pytest.approx(float(expected[0].scores[0]), abs=1e-4)
    assert (found[0].scores[:-1] >= found[0].scores[1:]).all()
    ready.say_suppression(THRESHOLDS, asked=True)
    assert not caplog.messages
    write_theirs(path, model, "once", {**OF_ULTRALYTICS, "args": "{'batch': 1, 'nms': True}"})
    opened(path).say_suppression(THRESHOLDS, asked=False)
    assert caplog.messages == [f"{path} suppresses by itself, and does not say at which thresholds"]


def test_names_may_come_from_the_data(tmp_path: Path) -> None:
    """Where the metadata is lost; and what does not fit them is a line before the first image."""
    model, path, data = filled_model("yolov8n"), tmp_path / "best.onnx", tmp_path / "d.yaml"
    write_theirs(path, model, "v8", {})
    with pytest.raises(UserError, match=r"it does not say which classes it knows.*: --data data\.yaml$"):
        opened(path)
    data.write_text("train: a\nval: a\nnames: [x, y, z]\n")
    inputs = inputs_of(1)
    expected = model.head.suppress(decoded(model, inputs / 255), THRESHOLDS)
    same_detections(found_by(opened(path, data=str(data)), inputs), expected)
    data.write_text("train: a\nval: a\nnames: [x, y]\n")
    with pytest.raises(
        UserError, match=r"its outputs are \(1, 7, 126\) for inputs of \(1, 3, 64, 96\); known"
    ):
        opened(path, data=str(data))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"task": "segment"}, "it is a model for the task segment"),
        ({"names": "{0: 'a', 2: 'b'}"}, "its metadata is damaged (names, at"),
        ({"names": "{0: open('/etc/passwd')}"}, "its metadata is damaged (names, at"),
        ({"names": "{}"}, "its metadata is damaged (no names)"),
        ({"names": "{0: " + "[" * 100_000}, "its metadata is damaged (names)"),
        ({"names": "{" + "0: 'a', " * 100_000 + "}"}, "its metadata is damaged (names, at"),
        ({"names": "{0: '" + "\\" * 99_999 + "'}"}, "its metadata is damaged"),
        ({"imgsz": "[640, 640, 640]"}, "its metadata is damaged (too many values"),
        ({"imgsz": "[-1, 640]"}, "its metadata is damaged (-1 is no size)"),
        ({"imgsz": "[" * 100_000}, "its metadata is damaged"),
        ({"stride": "1e9"}, "its metadata is damaged"),
    ],
)
def test_metadata_that_make_no_sense_are_a_line(texts: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        told_by({**OF_ULTRALYTICS, **texts}, "m.onnx")
    line = str(caught.value)
    assert line.startswith(f"m.onnx: {message}") and "\n" not in line and len(line) < 300


def test_names_as_python_prints_them() -> None:
    for names in (("a",), ("it's", 'a "b"', 'it\'s "c"', "é, {1: 'x'}", "\\", "tab\t"), ("a",) * 1000):
        for given in (dict(enumerate(names)), list(names)):
            expected = tuple(name.strip() for name in names)
            assert told_by({"names": str(given)}, "m").names == expected
    assert told_by({}, "m").names == ()
    assert told_by({"imgsz": "640"}, "m").imgsz == (640, 640)


class Outputs:
    """A file with these outputs, whatever it sees."""

    sides = (1, HEIGHT, WIDTH)

    def __init__(self, *outputs: object) -> None:
        self.texts: dict[str, str] = {}
        self.outputs = outputs

    def __call__(self, images: object) -> tuple[object, ...]:
        return self.outputs


def read(*outputs: object, names: tuple[str, ...] = NAMES, told: Told | None = None) -> Runner:
    about = About(model="m", names=names, stride=32, imgsz=(HEIGHT, WIDTH))
    runner: Any = Outputs(*outputs)
    return readable(runner, about, told or Told(names=names), "m.onnx")


def of(*shape: int, kind: type = np.float32) -> Any:
    return np.arange(math.prod(shape), dtype=kind).reshape(shape)


@pytest.mark.parametrize(
    "outputs",
    [
        (of(1, 378),),
        (of(1, 378, 9),),
        (of(1, 377, 8),),
        (of(1, 7, 127),),
        (of(1, 378, 8, kind=np.float16),),
        (of(1, 378, 40), of(1, 32, 16, 24)),  # of a model that segments
        (of(1, 378, 4), of(1, 378, 3)),  # as ours, but the metadata says it is none of ours
        (),
    ],
)
def test_other_outputs_are_a_line(outputs: tuple[Any, ...]) -> None:
    with pytest.raises(UserError) as caught:
        read(*outputs)
    line = str(caught.value)
    assert line.startswith("m.onnx: its outputs are ") and "\n" not in line and len(line) < 500


def test_six_columns_are_a_model_of_one_class_or_detections() -> None:
    """Told apart by how many rows the strides make; or the file says it."""
    one = ("cat",)
    image = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    boxes, scores = read(of(1, 378, 6), names=one)(image)
    assert boxes.shape == (1, 378, 4) and scores.tolist()[0][:2] == [[4 * 5], [10 * 11]]
    assert boxes.tolist()[0][0] == [0 - 1, 1 - 1.5, 0 + 1, 1 + 1.5]
    assert read(of(1, 90, 6), names=one)(image)[0].shape == (1, 90, 4)  # strides 16 and 32 (YOLOv3-tiny)
    (rows,) = read(of(1, 300, 6), names=one)(image)
    assert rows[0, :, 4].tolist() == sorted(rows[0, :, 4].tolist(), reverse=True)
    (rows,) = read(of(1, 378, 6), names=one, told=Told(names=one, gives_detections=True))(image)
    assert rows.shape == (1, 378, 6)
    with pytest.raises(UserError, match="its outputs are"):
        read(of(1, 7, 126), told=Told(names=NAMES, gives_detections=True))
