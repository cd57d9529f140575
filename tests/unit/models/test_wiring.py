"""What is connected with what, against the published layer tables."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from horovod_yolo.families.zoo import build_model
from horovod_yolo.models.blocks import NumberedLayers
from horovod_yolo.models.detector import Detector

from . import tables


def rows_of(model: Detector) -> dict[int, nn.Module]:
    rows: dict[int, nn.Module] = {}
    for layers in (model.backbone, model.neck):
        assert isinstance(layers, NumberedLayers)
        for child, row in layers.published.items():
            rows[row] = layers.get_submodule(child)
    return rows


def by_table(model: Detector, table: list[tables.Row], images: Tensor) -> list[Tensor]:
    """What an anchor head predicts."""
    predictions = []
    for conv_, x in zip(model.head.m, maps_by_table(model, table, images), strict=True):
        y = conv_(x)
        cells = y.reshape(y.shape[0], 3, -1, *y.shape[2:])
        predictions.append(torch.stack(cells.unbind(2), dim=-1))
    return predictions


def maps_by_table(model: Detector, table: list[tables.Row], images: Tensor) -> list[Tensor]:
    """What the head reads."""
    modules, outputs = rows_of(model), [images]  # outputs[row + 1]
    for row, (inputs, operation) in enumerate(table[:-1]):
        sources = (inputs,) if isinstance(inputs, int) else inputs
        given = [outputs[row + 1 + s] if s < 0 else outputs[s + 1] for s in sources]
        operations = {
            "layer": lambda x, row=row: modules[row](x[0]),
            "up": lambda x: x[0].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3),
            "cat": lambda x: torch.cat(x, dim=1),
            "pool": lambda x: F.max_pool2d(x[0], 2, 2),
            "pool1": lambda x: F.max_pool2d(F.pad(x[0], (0, 1, 0, 1)), 2, 1),
            "keep": lambda x: x[0],
        }
        outputs.append(operations[operation](given))
    rows, _ = table[-1]
    assert isinstance(rows, tuple)
    return [outputs[row + 1] for row in rows]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("yolov5n", tables.YOLOV5),
        ("yolov5n6", tables.YOLOV5_P6),
        ("yolov3-tiny", tables.YOLOV3_TINY),
    ],
)
def test_wiring_is_that_of_the_layer_table(name: str, table: list[tables.Row]) -> None:
    torch.manual_seed(0)
    model = build_model(name, 2).eval()
    images = torch.rand(1, 3, 64, 128)
    assert model.head.layer == len(table) - 1
    with torch.no_grad():
        for found, expected in zip(model(images), by_table(model, table, images), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("yolov8n", tables.YOLOV8),
        ("yolo11n", tables.YOLO11),
        ("yolo26n", tables.YOLO11),
        ("yolov5nu", tables.YOLOV5),
        ("yolov3-tinyu", tables.YOLOV3_TINY),
    ],
)
def test_wiring_of_bodies_whose_head_has_no_anchors(name: str, table: list[tables.Row]) -> None:
    torch.manual_seed(0)
    model = build_model(name, 2).eval()
    images = torch.rand(1, 3, 64, 128)
    assert model.head.layer == len(table) - 1
    with torch.no_grad():
        found = model.neck(model.backbone(images))
        for mine, expected in zip(found, maps_by_table(model, table, images), strict=True):
            torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("name", ["yolov3", "yolov3-spp"])
def test_wiring_of_yolov3(name: str) -> None:
    """60 M parameters take too long to fill, so every layer is thinned out to a cheap stand-in."""
    with torch.device("meta"):
        model = build_model(name, 2)
    torch.manual_seed(0)
    for layers in (model.backbone, model.neck):
        for child, module in layers.named_children():
            setattr(layers, child, StandIn(module))
    model.head.to_empty(device="cpu")
    for conv_ in model.head.m:
        conv_.reset_parameters()  # type: ignore[operator]
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        for found, expected in zip(model(images), by_table(model, tables.YOLOV3, images), strict=True):
            torch.testing.assert_close(found, expected)
            assert found.std() > 0


class StandIn(nn.Module):
    """A random 1x1 convolution with the channels and the stride of a real layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        stride = convs[0].stride[0]
        self.conv = nn.Conv2d(convs[0].in_channels, convs[-1].out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y
