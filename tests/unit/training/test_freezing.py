"""What is frozen, by which names, and that it stays as it is to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from horovod_yolo.config.schema import Freeze
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.distributed.sync_batchnorm import SyncBatchNorm2d, synchronise_batch_norm
from horovod_yolo.families.zoo import build_model
from horovod_yolo.models.batch_norm import BatchNorm2d
from horovod_yolo.models.detector import Detector, published_names
from horovod_yolo.training.ema import Ema
from horovod_yolo.training.freezing import freeze, frozen_parameters, held
from tests.helpers.tiny import running_statistics

from ..models.helpers import on_meta


def row_of_each(model: Detector) -> dict[str, int]:
    """The row of each parameter."""
    published = dict(zip(model.state_dict(), published_names(model), strict=True))
    return {name: int(published[name].split(".")[1]) for name, _ in model.named_parameters()}


@pytest.mark.parametrize("name", ["yolov5n", "yolov3-tiny", "yolov8n", "yolo11n", "yolo26n"])
def test_the_first_rows_and_the_listed_ones(name: str) -> None:
    model = on_meta(name, 3)
    row_of = row_of_each(model)
    for wanted, rows in (((10,), range(10)), ((0, 2), (0, 2)), ((2, 2), (2,)), ((0, 11), (0, 11))):
        expected = [key for key, row in row_of.items() if row in rows]
        assert expected and frozen_parameters(model, wanted) == expected, "whole rows, each tensor once"
    assert frozen_parameters(model, (0,)) == []


def test_ten_rows_are_the_backbone() -> None:
    model = on_meta("yolov5n", 3)
    frozen = {key for key, _ in model.named_parameters() if key.startswith("backbone.")}
    assert set(frozen_parameters(model, (10,))) == frozen
    assert set(frozen_parameters(model, ("backbone",))) == frozen


@pytest.mark.parametrize(
    ("wanted", "prefixes"),
    [
        (("model.24.m.1",), ["model.24.m.1."]),
        (("model.1",), ["model.1."]),  # and not model.10
        (("model.0.", "model.2.m"), ["model.0.", "model.2.m."]),
        (("model.2.cv1.bn", "model.2.cv1.bn.weight"), ["model.2.cv1.bn."]),
    ],
)
def test_published_names(wanted: Freeze, prefixes: list[str]) -> None:
    model = on_meta("yolov5n", 3)
    published = dict(zip(model.state_dict(), published_names(model), strict=True))
    frozen = frozen_parameters(model, wanted)
    expected = [key for key, _ in model.named_parameters() if any(map(published[key].startswith, prefixes))]
    assert sorted(frozen) == sorted(expected) and expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            (25,),
            r"--freeze leaves nothing to train.*yolov5n has layers 0 to 24, the last of",
        ),
        (tuple(range(25)), "leaves nothing to train"),
        (("model",), "leaves nothing to train"),
        (("backbone", "neck", "head"), "leaves nothing to train"),
        ((3, 25), r"--freeze 25: no such layer.*layers 0 to 24"),
        (("backbone", "model.24.cv3"), r"--freeze model\.24\.cv3: no such name.*model\.24 has m$"),
        (("model.99.conv",), r"no such name.*model has 0, 1, 2, 3, .*, 24$"),
        (("bodies.0",), r"--freeze bodies.0: no such name.*the model has model, backbone, neck, head$"),
        (("model.0.conv.weight.x",), r"no such name.*model\.0\.conv\.weight is a whole name"),
    ],
)
def test_what_the_model_has_not(wanted: Freeze, message: str) -> None:
    with pytest.raises(UserError, match=message):
        frozen_parameters(on_meta("yolov5n", 3), wanted)


def fresh(name: str, classes: int) -> Detector:
    """One that may be changed."""
    with torch.device("meta"):
        return build_model(name, classes)


def test_what_a_family_never_trains_does_not_count_as_left() -> None:
    """YOLOv8's numbers of the bins."""
    model = fresh("yolov8n", 3)
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert not model.get_parameter("head.dfl.conv.weight").requires_grad
    with pytest.raises(UserError, match="leaves nothing to train"):
        frozen_parameters(model, tuple(trained))
    freeze(model, (1,))
    assert not model.get_parameter("head.dfl.conv.weight").requires_grad


def modes(model: Detector) -> dict[str, bool]:
    return {name: m.training for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}


@pytest.mark.parametrize("synchronised", [False, True])
def test_batch_norm_of_frozen_rows_stays_in_evaluation_mode(synchronised: bool) -> None:
    model = fresh("yolov8n", 3)
    freeze(model, (10,))
    if synchronised:
        synchronise_batch_norm(model, LocalCommunicator())
    for _ in range(2):
        assert modes(model.train()) == {name: not name.startswith("backbone.") for name in modes(model)}
        assert not any(modes(model.eval()).values())
    assert modes(copy.deepcopy(model).train()) == modes(model.train())
    kinds = {isinstance(m, SyncBatchNorm2d) for m in model.backbone.modules() if isinstance(m, BatchNorm2d)}
    assert kinds == {False}, "no rank waits for another there"


def test_batch_norm_that_is_frozen_in_part_goes_on() -> None:
    model = fresh("yolov5n", 3)
    freeze(model, ("model.0.bn.bias", "model.1.bn"))
    first, second = (layer.bn for layer in list(model.backbone.children())[:2])
    assert (first.fixed, second.fixed) == (False, True)


def test_averages_leave_frozen_values_alone_to_the_bit() -> None:
    """Published weights are rounded to float16 and full of -0.0, which an average would turn into 0.0."""
    torch.manual_seed(0)
    model = build_model("yolov5n", 2)
    freeze(model, ("backbone",))
    with torch.no_grad():
        for key in held(model):
            tensor = model.state_dict()[key]
            tensor.copy_(torch.full_like(tensor, -0.0)) if tensor.is_floating_point() else tensor.fill_(9)
    before = bits(model)
    ema = Ema(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    ema.update(model)
    after = bits(ema.model)
    assert {key for key in before if before[key] == after[key]} >= held(model)
    moved = {key for key in before if before[key] != after[key]}
    assert moved == {key for key, p in model.named_parameters() if p.requires_grad}


def bits(model: Detector) -> dict[str, bytes]:
    return {key: tensor.detach().numpy().tobytes() for key, tensor in model.state_dict().items()}


def test_held_is_what_neither_the_optimizer_nor_a_batch_moves() -> None:
    torch.manual_seed(0)
    model = build_model("yolov8n", 2).train()
    freeze(model, ("model.0", "model.22.cv2.0"))
    before, statistics = copy.deepcopy(model.state_dict()), running_statistics(model).numel()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    output: Any = model(torch.rand(2, 3, 64, 64))["one2many"]
    sum(map_.square().mean() for map_ in (*output.sides, *output.logits)).backward()
    optimizer.step()
    same = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    assert same == held(model)
    whole = running_statistics(build_model("yolov8n", 2)).numel()
    fixed = [m for m in model.modules() if isinstance(m, BatchNorm2d) and m.fixed]
    assert statistics == whole - 2 * sum(m.num_features for m in fixed) and len(fixed) == 3
