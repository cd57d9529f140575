"""Broken and hostile exported files end in one line; a file that says nothing of itself asks."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.assembly.exported import Asked, Opened, open_exported
from horovod_yolo.core.errors import UserError
from horovod_yolo.export.about import About
from horovod_yolo.export.formats import opened_runner, read_exported
from horovod_yolo.export.onnx_file import OnnxSettings, onnx_bytes
from horovod_yolo.export.torchscript_file import torchscript_bytes
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.prediction.exported import ExportedFinder
from tests.helpers.exporting import about_of, decoded, filled_model, pictures, same_detections
from tests.helpers.tiny_zoo import Tiny

CPU = torch.device("cpu")


def opened(path: Path, **asked: object) -> Opened:
    file = read_exported(path)
    assert file is not None
    return open_exported(file, CPU, Asked(**asked))  # type: ignore[arg-type]


def graph(
    body: str, inputs: str = "float[B, 3, H, W] images", outputs: str = "float[B, M, 4] boxes"
) -> bytes:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{{body}}}'
    return onnx.parser.parse_model(text).SerializeToString()


def outside() -> bytes:
    """Weights that are to come from a file of the reader's."""
    proto = onnx.load_from_string(graph("w = Constant<value = float[1] {1.0}>()\nboxes = Mul(images, w)"))
    value = proto.graph.initializer.add()
    value.name, value.data_type, value.data_location = "secret", onnx.TensorProto.FLOAT, 1
    value.dims.extend([16])
    place = value.external_data.add()
    place.key, place.value = "location", "/etc/passwd"
    proto.graph.node.append(onnx.helper.make_node("Identity", ["secret"], ["copied"]))
    proto.graph.output.add().name = "copied"
    return proto.SerializeToString()


class Reader(nn.Module):
    """A program that reads a file while it computes."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_file("/etc/hostname", size=1) + images


def script(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that TorchScript is old
        torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


TWICE = "float[B, 3, H, W] images, float[1] more"
BAD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("m.onnx", lambda: b""),
    "noise": ("m.onnx", lambda: bytes(range(256)) * 40),
    "cut": ("m.onnx", lambda: onnx_bytes(*tiny(), OnnxSettings())[:-4000]),
    "two inputs": ("m.onnx", lambda: graph("boxes = Add(images, more)", inputs=TWICE)),
    "of bytes": (
        "m.onnx",
        lambda: graph("boxes = Identity(images)", "uint8[B, 3, H, W] images", "uint8[B] boxes"),
    ),
    "unknown operator": ("m.onnx", lambda: graph("boxes = Frobnicate(images)")),
    "a file outside": ("m.onnx", outside),
    "an empty script": ("m.torchscript", lambda: b""),
    "a cut script": ("m.torchscript", lambda: torchscript_bytes(*tiny())[:-3000]),
    "a script that reads files": ("m.torchscript", lambda: script(Reader())),
    "no xml": ("m.xml", lambda: b"<net"),
}


def tiny() -> tuple[nn.Module, About]:
    model = Tiny().build("tiny", 3).eval()
    return model, about_of(model)  # type: ignore[return-value]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_line(name: str, tmp_path: Path) -> None:
    file, make = BAD[name]
    path = tmp_path / file
    path.write_bytes(make())
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        opened(path, data="none.yaml", imgsz=64).runner(pictures(1, 64, 64).numpy())
    line = str(caught.value)
    assert line.startswith(str(path)) and "\n" not in line and len(line) < 500
    assert "none.yaml" not in line


def test_weights_from_elsewhere_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    padded = outside().replace(b"\x0a\x08location", b"\x0a\x88\x00location")
    for content in (outside(), padded):
        path.write_bytes(content)
        with pytest.raises(UserError, match="it names another file, from which its weights are to come"):
            opened(path)
    model, _ = tiny()
    names = about_of(model, names=("location", "b", "c"))  # type: ignore[arg-type]
    path.write_bytes(onnx_bytes(model, names, OnnxSettings()))  # type: ignore[arg-type]
    assert opened(path).about.names[0] == "location"


def test_what_a_script_calls_is_looked_at_before_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "m.torchscript"
    path.write_bytes(script(Reader()))
    with pytest.raises(UserError, match=r"it calls torch\.from_file, which no file of ours does"):
        opened(path)


def test_a_gpu_that_the_files_program_cannot_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line where it was asked for; else the CPU computes, and for ONNX a line says what is missing."""
    gpu = torch.device("cuda", 0)
    model, about = tiny()
    contents = {
        "m.onnx": onnx_bytes(model, about, OnnxSettings()),
        "m.torchscript": torchscript_bytes(model, about),
    }  # type: ignore[arg-type]
    for name, message in (
        ("m.onnx", r"this onnxruntime has no CUDA\. pip install onnxruntime-gpu in its place, or use"),
        ("m.torchscript", r"this file computes on the CPU\. use --device cpu, or an ONNX file"),
    ):
        path = tmp_path / name
        path.write_bytes(contents[name])
        file = read_exported(path)
        assert file is not None
        with pytest.raises(UserError, match=message):
            opened_runner(file, gpu, must=True)
        assert opened_runner(file, gpu, must=False)(pictures(1, 64, 64).numpy())
    assert [one.partition(": ")[2] for one in caplog.messages] == [
        "this onnxruntime has no CUDA: the CPU computes"
    ]


@pytest.mark.parametrize("file", ["m.onnx", "m.torchscript", "m.xml", "m_openvino_model"])
def test_what_is_not_there_or_no_file_is_a_line(file: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory; looked for /"):
        read_exported(tmp_path / file)
    (tmp_path / file).mkdir()
    with pytest.raises(UserError, match=r"not a regular file|Is a directory|0 \.xml files in this folder"):
        read_exported(tmp_path / file)


def test_other_files_are_none_of_ours(tmp_path: Path) -> None:
    assert read_exported(tmp_path / "best.pt") is None
    with pytest.raises(UserError, match="files of TensorRT are not run here"):
        read_exported(tmp_path / "best.engine")


def test_a_file_without_metadata_asks_for_names_and_size(tmp_path: Path) -> None:
    model = filled_model("yolov8n")
    proto = onnx.load_from_string(onnx_bytes(model, about_of(model), OnnxSettings()))
    del proto.metadata_props[:]
    path, data = tmp_path / "m.onnx", tmp_path / "d.yaml"
    path.write_bytes(proto.SerializeToString())
    data.write_text("train: a\nval: a\nnames: [x, y, z]\n")
    for asked, missing in (
        ({}, "--data data.yaml --imgsz 640"),
        ({"data": str(data)}, "--imgsz 640"),
        ({"imgsz": 64}, "--data data.yaml"),
    ):
        with pytest.raises(UserError, match=f"it does not say which classes it knows.*say it: {missing}$"):
            opened(path, **asked)
    ready = opened(path, data=str(data), imgsz=64)
    assert (ready.about.names, ready.shape) == (("x", "y", "z"), (64, 64))
    thresholds = Thresholds(confidence=0.3, iou=0.5, most=9)
    inputs = (pictures(2, 64, 64) * 255).round().to(torch.uint8)
    found = ready.finder(thresholds)(inputs.permute(0, 2, 3, 1).numpy())
    same_detections(found, model.head.suppress(decoded(model, inputs / 255), thresholds))
    two = tmp_path / "two.yaml"
    two.write_text("train: a\nval: a\nnames: [x, y]\n")
    with pytest.raises(UserError, match="no boxes and scores of 2 classes"):
        opened(path, data=str(two), imgsz=64).finder(thresholds)(inputs.permute(0, 2, 3, 1).numpy())


def test_metadata_that_contradict_the_input_are_a_line(tmp_path: Path) -> None:
    model, about = tiny()
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_bytes(model, about, OnnxSettings()))  # type: ignore[arg-type]
    proto = onnx.load(path)
    sizes = {"batch": "2", "dynamic": "false"}
    onnx.helper.set_model_props(proto, {**about.as_texts(), **sizes})
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="it takes other inputs than its metadata says"):
        opened(path)


class Rows:
    """A file that suppresses by itself, and gives nonsense beside detections."""

    texts: dict[str, str] = {}  # noqa: RUF012
    sides = (0, 0, 0)

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = rows

    def __call__(self, images: object) -> tuple[object, ...]:
        return (torch.tensor([self.rows]).numpy(),)


def test_rows_that_are_no_detections_are_left_out() -> None:
    nan = float("nan")
    rows = [[0, 0, 9, 9, 0.9, 1], [0, 0, 9, nan, 0.8, 1], [0, 0, 5, 5, 0.7, 7], [0, 0, 4, 4, 0.6, 0], [0] * 6]
    _, about = tiny()
    finder = ExportedFinder(Rows(rows), about, Thresholds(confidence=0.25))  # type: ignore[arg-type]
    image = torch.zeros((1, 32, 32, 3), dtype=torch.uint8).numpy()
    (found,) = finder(image)
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])
    (found,) = ExportedFinder(Rows(rows), about, Thresholds(confidence=0.25), (0,))(image)  # type: ignore[arg-type]
    assert found.classes.tolist() == [0]
