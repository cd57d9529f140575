"""The models: sizes, look-up by name, initial state, anchors, empty batches."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.core.errors import UserError
from horovod_yolo.families.anchor_based.family import AnchorBased, anchor_head
from horovod_yolo.families.base import Recognised
from horovod_yolo.families.zoo import build_model, model_of, recognise
from horovod_yolo.models.blocks import Conv
from horovod_yolo.models.detector import published_names
from horovod_yolo.models.yolov5 import SIZES

from ..models.helpers import on_meta

REPO = Path(__file__).resolve().parents[3]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# Parameters by arithmetic, independent of the modules.


def conv(kernel: int, c_in: int, c_out: int) -> int:
    return kernel * kernel * c_in * c_out + 2 * c_out  # no bias; batch norm has two numbers a channel


def bottleneck(c_in: int, c_out: int) -> int:
    return conv(1, c_in, c_out // 2) + conv(3, c_out // 2, c_out)


def c3(c_in: int, c_out: int, repeats: int) -> int:
    h = c_out // 2
    return 2 * conv(1, c_in, h) + conv(1, 2 * h, c_out) + repeats * (conv(1, h, h) + conv(3, h, h))


def head(classes: int, *channels: int) -> int:
    return sum((c + 1) * 3 * (5 + classes) for c in channels)


def yolov5_p6(letter: str) -> int:
    width, depth = SIZES[letter].width, SIZES[letter].depth
    c1, c2, c3_, c4, c5, c6 = (int(c * width) for c in (64, 128, 256, 512, 768, 1024))
    n3, n6, n9 = (max(round(n * depth), 1) for n in (3, 6, 9))
    backbone = (
        conv(6, 3, c1)
        + (conv(3, c1, c2) + c3(c2, c2, n3))
        + (conv(3, c2, c3_) + c3(c3_, c3_, n6))
        + (conv(3, c3_, c4) + c3(c4, c4, n9))
        + (conv(3, c4, c5) + c3(c5, c5, n3))
        + (conv(3, c5, c6) + c3(c6, c6, n3))
        + (conv(1, c6, c6 // 2) + conv(1, c6 * 2, c6))
    )
    up = (
        (conv(1, c6, c5) + c3(2 * c5, c5, n3))
        + (conv(1, c5, c4) + c3(2 * c4, c4, n3))
        + (conv(1, c4, c3_) + c3(2 * c3_, c3_, n3))
    )
    down = sum(conv(3, c, c) + c3(2 * c, c_out, n3) for c, c_out in ((c3_, c4), (c4, c5), (c5, c6)))
    return backbone + up + down + head(80, c3_, c4, c5, c6)


def yolov3(spp: bool) -> int:
    darknet = conv(3, 3, 32) + sum(
        conv(3, c // 2, c) + n * bottleneck(c, c)
        for c, n in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
    )
    squeeze = conv(1, 1024, 512) + (conv(1, 4 * 512, 512) if spp else 0)
    p5 = bottleneck(1024, 1024) + squeeze + 2 * conv(3, 512, 1024) + conv(1, 1024, 512)
    p4 = conv(1, 512, 256) + bottleneck(768, 512) + bottleneck(512, 512) + conv(1, 512, 256)
    p3 = conv(1, 256, 128) + bottleneck(384, 256) + 2 * bottleneck(256, 256)
    return darknet + p5 + p4 + conv(3, 256, 512) + p3 + head(80, 256, 512, 1024)


def yolov3_tiny() -> int:
    widths = (3, 16, 32, 64, 128, 256, 512, 1024)
    backbone = sum(conv(3, a, b) for a, b in pairwise(widths))
    neck = conv(1, 1024, 256) + conv(3, 256, 512) + conv(1, 256, 128) + conv(3, 384, 256)
    return backbone + neck + head(80, 256, 512)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolov5n", 1_872_157),  # the first five: published figures
        ("yolov5s", 7_235_389),
        ("yolov5m", 21_190_557),
        ("yolov5l", 46_563_709),
        ("yolov5x", 86_749_405),
        ("yolov3", 61_949_149),
        ("yolov3-spp", 62_998_749),
        ("yolov3-tiny", 8_852_366),
    ],
)
def test_trainable_parameters(name: str, expected: int) -> None:
    assert parameters(on_meta(name)) == expected


def test_trainable_parameters_by_arithmetic() -> None:
    for letter in SIZES:
        assert parameters(on_meta(f"yolov5{letter}6")) == yolov5_p6(letter)
    assert parameters(on_meta("yolov3")) == yolov3(spp=False)
    assert parameters(on_meta("yolov3-spp")) == yolov3(spp=True)
    assert parameters(on_meta("yolov3-tiny")) == yolov3_tiny()


@pytest.mark.parametrize("name", AnchorBased.models)
def test_output_shapes(name: str) -> None:
    model = on_meta(name)
    height, width = 192, 128
    predictions = model(torch.empty(2, 3, height, width, device="meta"))
    assert [tuple(p.shape) for p in predictions] == [
        (2, 3, height // s, width // s, 85) for s in model.strides
    ]
    assert all(p.is_contiguous() for p in predictions)
    assert model.name == name
    assert anchor_head(model).anchors_px.shape == (len(model.strides), 3, 2)


@pytest.mark.parametrize("typed", ["yolov5n.yaml", "models/yolov5n.yaml", "models\\yolov5n.yaml", "yolov5n"])
def test_names_as_yolov5_users_type_them(typed: str) -> None:
    assert on_meta(typed).name == "yolov5n"


@pytest.mark.parametrize(
    ("typed", "near"), [("yolo5s", "yolov5s"), ("YOLOv5m.yaml", "yolov5m"), ("yolov3spp", "yolov3-spp")]
)
def test_unknown_name_gives_the_nearest(typed: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {near}\\?"):
        build_model(typed, 80)


def test_unknown_name_far_from_all_lists_them() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnet'.*known: yolov5n, ") as caught:
        build_model("resnet", 80)
    assert "did you mean" not in str(caught.value)


def test_no_class_is_refused() -> None:
    with pytest.raises(UserError, match="at least one class"):
        build_model("yolov5n", 0)


# Initial state.


def test_same_seed_same_weights() -> None:
    def build(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build_model("yolov5n", 3).state_dict()

    first, again, other = build(1), build(1), build(2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_biases_start_at_rare_objects() -> None:
    torch.manual_seed(0)
    model = build_model("yolov5n", 80)
    for conv_, stride in zip(anchor_head(model).m, model.strides, strict=True):
        assert isinstance(conv_, nn.Conv2d) and conv_.bias is not None
        slack = 1 / math.sqrt(conv_.in_channels)  # torch draws biases from +- this
        bias = conv_.bias.detach().view(3, 85)
        assert bias[:, :4].abs().max() <= slack
        assert (bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs().max() <= slack + 1e-6
        assert (bias[:, 5:] - math.log(0.6 / (80 - 0.99999))).abs().max() <= slack + 1e-6


def test_batch_norm_settings() -> None:
    norms = [m for m in on_meta("yolov3-tiny").modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.eps == 1e-3 and m.momentum == 0.03 for m in norms)


# Anchors.


def test_anchors_are_held_in_strides_and_given_in_pixels() -> None:
    head = anchor_head(build_model("yolov5n", 1))
    assert head.anchors[1, 0].tolist() == [30 / 16, 61 / 16]
    assert head.anchors_px[1, 0].tolist() == [30, 61]
    assert head.anchors_px[2, 2].tolist() == [373, 326]
    assert anchor_head(build_model("yolov3-tiny", 1)).anchors_px[0, 0].tolist() == [10, 14]


def test_set_anchors_changes_the_state_in_place() -> None:
    head = anchor_head(build_model("yolov5n", 1))
    buffer, new = head.anchors, torch.arange(1.0, 19.0).reshape(3, 3, 2)
    head.set_anchors(new)
    assert head.anchors is buffer
    assert torch.equal(head.anchors_px, new)
    assert torch.equal(copy.deepcopy(head).anchors_px, new)


def test_own_anchors_set_the_width_of_the_head() -> None:
    model = AnchorBased().build("yolov5n", 2, anchors_px=[[(4, 5)], [(20, 20)], [(80, 90)]])
    assert [p.shape[1] for p in model(torch.rand(2, 3, 64, 64))] == [1, 1, 1]
    with pytest.raises(UserError, match="3 anchors a level for a head of 1"):
        anchor_head(model).set_anchors(torch.ones(3, 3, 2))


@pytest.mark.parametrize(
    "anchors",
    [
        [[(4, 5)], [(20, 20)]],
        [[(4, 5)], [(20, 20)], [(80, 90), (1, 1)]],
        [[(4, 5)], [(20, 20)], [(80, -1)]],
        [[(4, 5)], [(20, 20)], [(80, float("nan"))]],
        [[(4, 5)], [(20, 20)], [("a", "b")]],
        [[], [], []],
    ],
)
def test_bad_anchors_are_refused(anchors: list[list[tuple[float, float]]]) -> None:
    with pytest.raises(UserError, match="3 levels"):
        AnchorBased().build("yolov5n", 1, anchors_px=anchors)


# A rank without images.


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n6", "yolov3-tiny"])
def test_empty_batch_in_eval_mode(name: str) -> None:
    model = build_model(name, 2).eval()
    predictions = model(torch.zeros(0, 3, 64, 128))
    assert [tuple(p.shape) for p in predictions] == [(0, 3, 64 // s, 128 // s, 7) for s in model.strides]


class Affine(nn.Module):
    """In place of a batch norm that gets its statistics from other ranks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n6", "yolov3-tiny"])
def test_empty_batch_gives_every_parameter_a_zero_gradient(name: str) -> None:
    model = build_model(name, 2).train()
    for module in model.modules():
        if isinstance(module, Conv):
            module.bn = Affine(module.bn.num_features)  # type: ignore[assignment]
    sum(p.sum() for p in model(torch.zeros(0, 3, 64, 64))).backward()  # type: ignore[union-attr]
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = build_model("yolov5n", 2)
    torch.stack([p.square().mean() for p in model(torch.rand(2, 3, 64, 64))]).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# Published files.


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    values = model.state_dict().values()
    return {key: tuple(v.shape) for key, v in zip(published_names(model), values, strict=True)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "classes", "variant"),
    [
        ("yolov5n", 3, {}),
        ("yolov5n6", 1, {"anchors_a_level": 5}),
        ("yolov3-tiny", 80, {}),
        ("yolov3u", 2, {"class_width": 256}),
        ("yolov5nu", 2, {"class_width": 64}),
        ("yolov8n", 3, {"class_width": 80}),
        ("yolo11m", 3, {"class_width": 256}),
        ("yolo11l", 3, {"class_width": 256}),
        ("yolo26n", 120, {"class_width": 80}),
    ],
)
def test_a_file_is_recognised_by_keys_and_shapes(name: str, classes: int, variant: dict[str, int]) -> None:
    with torch.device("meta"):
        model = build_model(name, classes, variant)
    shapes = shapes_of(model)
    of_anchors = any(key.endswith(".anchors") for key in shapes)
    if not name.startswith("yolo26"):  # with the numbers of bins it would be YOLOv10
        shapes["model.9.anchor_grid" if of_anchors else "model.9.dfl.conv.weight"] = (1, 2)
    shapes = {key: shape for key, shape in shapes.items() if "num_batches_tracked" not in key}
    assert recognise(shapes) == [Recognised(name, classes, variant)]
    widened = {**shapes, "model.0.conv.weight": (1000, *shapes["model.0.conv.weight"][1:])}
    with pytest.raises(UserError, match="not those of a model"):
        recognise(widened)
    missing = {key: shape for key, shape in shapes.items() if key != "model.0.conv.weight"}
    with pytest.raises(UserError, match="not those of a model"):
        recognise(missing)
    with pytest.raises(UserError, match="not those of a model"):
        recognise({**shapes, "model.1.more": (1,)})


def test_a_model_of_a_checkpoint_is_of_its_variant() -> None:
    built = model_of({"model_name": "yolov5n", "names": ["a", "b"], "variant": {"anchors_a_level": 2}})
    assert built.variant == {"anchors_a_level": 2}
    assert anchor_head(built).anchors_px.tolist()[0] == [[10, 13], [16, 30]]
    assert model_of({"model_name": "yolov5n", "names": ["a"]}).variant == {}


WITHOUT_VALUES = """
import sys
import torch
from horovod_yolo.families import zoo
for name in zoo.model_names():
    with torch.device("meta"):
        zoo.build_model(name, 3)
    if parts := {"sympy", "torch._dynamo"} & set(sys.modules):
        sys.exit(f"{name} loads {parts}")
"""


def test_no_model_loads_pytorchs_compiler_when_it_is_built_without_values() -> None:
    """So files are recognised, on every rank: the import would take as long as torch's own, and 100 MB."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_VALUES], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
