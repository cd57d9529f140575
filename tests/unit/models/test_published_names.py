"""Names, order and shapes of the weights are those of published checkpoints."""

from __future__ import annotations

import pytest

from horovod_yolo.families.zoo import model_names
from horovod_yolo.models.detector import published_names

from .helpers import on_meta

BATCH_NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def conv_names(prefix: str) -> list[str]:
    return [f"{prefix}.conv.weight", *(f"{prefix}.bn.{n}" for n in BATCH_NORM)]


def c3_names(prefix: str, repeats: int) -> list[str]:
    blocks = [f"{prefix}.{b}" for b in ("cv1", "cv2", "cv3")]
    blocks += [f"{prefix}.m.{i}.{b}" for i in range(repeats) for b in ("cv1", "cv2")]
    return [name for block in blocks for name in conv_names(block)]


def two_names(prefix: str) -> list[str]:
    return conv_names(f"{prefix}.cv1") + conv_names(f"{prefix}.cv2")


def head_names(prefix: str, levels: int) -> list[str]:
    return [f"{prefix}.anchors", *(f"{prefix}.m.{i}.{n}" for i in range(levels) for n in ("weight", "bias"))]


def test_published_names_of_yolov5n() -> None:
    """All 349 keys of the published yolov5n checkpoint, in its order."""
    backbone = "conv conv c3:1 conv c3:2 conv c3:3 conv c3:1 sppf"
    neck = "conv - - c3:1 conv - - c3:1 conv - c3:1 conv - c3:1"
    expected: list[str] = []
    for row, kind in enumerate(f"{backbone} {neck}".split()):
        if kind == "conv":
            expected += conv_names(f"model.{row}")
        elif kind == "sppf":
            expected += two_names(f"model.{row}")
        elif kind != "-":
            expected += c3_names(f"model.{row}", int(kind[3:]))
    expected += head_names("model.24", 3)
    assert expected[:7] == [
        "model.0.conv.weight",
        "model.0.bn.weight",
        "model.0.bn.bias",
        "model.0.bn.running_mean",
        "model.0.bn.running_var",
        "model.0.bn.num_batches_tracked",
        "model.1.conv.weight",
    ]
    assert len(expected) == 349
    assert published_names(on_meta("yolov5n")) == expected


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("yolov5n", "model.0.conv.weight", (16, 3, 6, 6)),
        ("yolov5s", "model.9.cv2.conv.weight", (512, 1024, 1, 1)),
        ("yolov5m", "model.6.m.5.cv2.conv.weight", (192, 192, 3, 3)),
        ("yolov5x", "model.17.m.3.cv1.bn.running_var", (160,)),
        ("yolov5l", "model.24.m.2.weight", (255, 1024, 1, 1)),
        ("yolov5l", "model.24.anchors", (3, 3, 2)),
        ("yolov5s6", "model.33.m.2.weight", (255, 384, 1, 1)),
        ("yolov5s6", "model.12.conv.weight", (384, 512, 1, 1)),
        ("yolov3", "model.2.cv1.conv.weight", (32, 64, 1, 1)),
        ("yolov3", "model.10.3.cv2.conv.weight", (1024, 512, 3, 3)),
        ("yolov3", "model.12.conv.weight", (512, 1024, 1, 1)),
        ("yolov3", "model.27.1.cv2.conv.weight", (256, 128, 3, 3)),
        ("yolov3-spp", "model.12.cv2.conv.weight", (512, 2048, 1, 1)),
        ("yolov3-spp", "model.28.m.0.bias", (255,)),
        ("yolov3-tiny", "model.13.conv.weight", (1024, 512, 3, 3)),
        ("yolov3-tiny", "model.20.m.1.weight", (255, 512, 1, 1)),
    ],
)
def test_published_shapes(name: str, key: str, shape: tuple[int, ...]) -> None:
    model = on_meta(name)
    state = dict(zip(published_names(model), model.state_dict().values(), strict=True))
    assert tuple(state[key].shape) == shape


@pytest.mark.parametrize("name", model_names())
def test_published_rows_rise_and_names_are_unique(name: str) -> None:
    names = published_names(on_meta(name))
    rows = [int(n.split(".")[1]) for n in names]
    assert rows == sorted(rows)
    assert len(set(names)) == len(names)
