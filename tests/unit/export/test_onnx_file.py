"""ONNX files give what the model gives: all families, any size, half precision, suppression in the graph."""

from __future__ import annotations

import copy
from dataclasses import replace

import onnx
import pytest
import torch
from torch import Tensor

from horovod_yolo.core.errors import UserError
from horovod_yolo.export.checking import Difference, difference, require_close
from horovod_yolo.export.onnx_file import OnnxSettings, onnx_bytes, with_suppression
from horovod_yolo.export.running import Runner
from horovod_yolo.models.blocks import Conv
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.prediction.exported import ExportedFinder
from tests.helpers.exporting import (
    about_of,
    decoded,
    filled_model,
    pictures,
    raise_scores,
    ready,
    same_detections,
)
from tests.helpers.reference_fill import fill
from tests.helpers.tiny_zoo import Tiny

MODELS = [
    ("yolov5n", ""),
    ("yolov3-tiny", ""),
    ("yolov8n", ""),
    ("yolo11n", ""),
    ("yolo26n", "one2one"),
    ("yolo26n", "one2many"),
]
SHAPES = [(2, 64, 96), (1, 96, 64), (3, 128, 128)]


def require_same(runner: Runner, model: Detector, inputs: Tensor, scores: float, boxes: float) -> None:
    """Scores within a number, boxes within a share of the input's longer side."""
    expected = decoded(model, inputs)
    assert float(expected.scores.std()) > 5e-3, "the outputs are no constants"
    found_boxes, found_scores = map(torch.from_numpy, runner(inputs.numpy()))
    torch.testing.assert_close(found_scores, expected.scores, rtol=0, atol=scores)
    side = max(inputs.shape[2:])
    torch.testing.assert_close(found_boxes, expected.boxes_xyxy, rtol=0, atol=boxes * side)


@pytest.mark.parametrize(("name", "head"), MODELS)
def test_a_dynamic_file_gives_what_the_model_gives(name: str, head: str) -> None:
    """Also with suppression in it, of one class or of all that a box may have."""
    model = filled_model(name, head)
    about = about_of(model)
    content = onnx_bytes(model, about, OnnxSettings())
    runner = ready(content)
    for shape in SHAPES:
        require_same(runner, model, pictures(*shape), 1e-4, 1e-5)
    inputs = (pictures(2, 64, 96) * 255).round().to(torch.uint8)
    expected = decoded(model, inputs / 255)
    least = float(expected.scores.flatten(1).sort(descending=True).values[:, 60].max())
    for multi_label in (False, True):
        own = Thresholds(confidence=least, iou=0.3, most=20, multi_label=multi_label)
        suppressed = replace(about, suppression=own)
        finder = ExportedFinder(ready(with_suppression(content, suppressed)), suppressed, own)
        found = finder(inputs.permute(0, 2, 3, 1).numpy())
        assert all(len(one) for one in found)
        same_detections(found, model.head.suppress(expected, own))


@pytest.mark.parametrize(("name", "head"), MODELS)
def test_half_precision_is_decoded_in_float32(name: str, head: str) -> None:
    model = filled_model(name, head)
    content = onnx_bytes(model, about_of(model, batch=2, precision="fp16"), OnnxSettings())
    kinds = {one.data_type for one in onnx.load_from_string(content).graph.initializer if len(one.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    require_same(ready(content), model, pictures(2, 64, 96), 1e-2, 2e-3)


@torch.no_grad()
def test_a_variance_that_half_precision_cannot_hold_is_none_any_more() -> None:
    """Batch norm becomes part of the convolution before that is rounded."""
    model = filled_model("yolov8n")
    first = model.get_submodule("backbone").get_submodule(next(iter(model.backbone.published)))
    assert isinstance(first, Conv) and first.bn.running_mean is not None and first.bn.running_var is not None
    for value, factor in (
        (first.conv.weight, 1e3),
        (first.bn.running_mean, 1e3),
        (first.bn.running_var, 1e6),
    ):
        value *= factor
    assert float(first.bn.running_var.max()) > 65504
    content = onnx_bytes(model, about_of(model, batch=2, precision="fp16"), OnnxSettings())
    require_same(ready(content), model, pictures(2, 64, 96), 1e-2, 2e-3)


def test_a_static_file_is_simplified_and_has_the_operators_that_were_asked_for() -> None:
    model = filled_model("yolov5n")
    nodes = {}
    for opset, simplify in ((17, False), (19, True)):
        settings = OnnxSettings(opset=opset, simplify=simplify)
        content = onnx_bytes(model, about_of(model, batch=2), settings)
        proto = onnx.load_from_string(content)
        assert [(one.domain, one.version) for one in proto.opset_import] == [("", opset)]
        sizes = [
            [d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in (*proto.graph.input, *proto.graph.output)
        ]
        assert sizes == [[2, 3, 64, 96], [2, 378, 4], [2, 378, 3]]
        nodes[opset, simplify] = len(proto.graph.node)
        require_same(ready(content), model, pictures(2, 64, 96), 1e-4, 1e-5)
    assert nodes[19, True] < nodes[17, False]


def test_newer_operators_come_from_the_newer_exporter() -> None:
    model = Tiny().build("tiny", 3).eval()  # it takes seconds for each layer
    fill(model, 2)
    raise_scores(model)
    content = onnx_bytes(model, about_of(model), OnnxSettings(opset=21))
    assert onnx.load_from_string(content).opset_import[0].version == 21
    for shape in SHAPES:
        require_same(ready(content), model, pictures(*shape), 1e-4, 1e-5)


@pytest.mark.parametrize("opset", [15, 99])
def test_operators_that_are_not_written_are_a_line(opset: int) -> None:
    with pytest.raises(UserError, match=f"--opset is {opset}. use one of 16 to"):
        OnnxSettings(opset=opset)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_model_stays_as_it_was(precision: str) -> None:
    model = filled_model("yolo26n", "one2many").train()
    before, used = copy.deepcopy(model.state_dict()), model.head.used
    wanted = [p.requires_grad for p in model.parameters()]
    onnx_bytes(model, about_of(model, batch=1, precision=precision), OnnxSettings())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(
        value.dtype == before[key].dtype and torch.equal(value, before[key]) for key, value in after.items()
    )
    assert model.training and all(module.training for module in model.modules())
    assert model.head.used == used and [p.requires_grad for p in model.parameters()] == wanted


def test_the_metadata_is_in_the_file() -> None:
    model = filled_model("yolov8n")
    about = about_of(model, license="AGPL-3.0 (somewhere)", data="d.yaml")
    content = onnx_bytes(model, about, OnnxSettings())
    assert dict(ready(content).texts) == about.as_texts()
    assert ready(content).sides == (0, 0, 0)
    suppressed = replace(about, suppression=Thresholds(confidence=0.1))
    assert dict(ready(with_suppression(content, suppressed)).texts) == suppressed.as_texts()


def test_a_file_that_computes_something_else_is_refused() -> None:
    model, other = filled_model("yolov8n"), filled_model("yolov8n")
    about = about_of(model)
    runner = ready(onnx_bytes(model, about, OnnxSettings()))
    assert difference(model, runner, about).scores < 1e-5
    with torch.no_grad():
        other.head.cv3[0][2].bias += 0.01  # type: ignore[union-attr,index,operator]
    found = difference(other, runner, about)
    assert 1e-4 < found.scores < 1e-2
    with pytest.raises(UserError, match=r"m\.onnx: the exported file does not give what the model gives"):
        require_close(found, about, "m.onnx")
    require_close(found, replace(about, precision="fp16"), "m.onnx")
    for broken in (Difference(float("nan"), 0), Difference(0, 1e-3)):
        with pytest.raises(UserError, match="does not give"):
            require_close(broken, about, "m.onnx")
