"""Parameter groups, rates and averaging."""

from __future__ import annotations

import copy
import math
from itertools import chain
from typing import get_args

import pytest
import torch
from torch import nn

from horovod_yolo.config.schema import OptimizerName
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.distributed.sync_batchnorm import synchronise_batch_norm
from horovod_yolo.families.zoo import build_model
from horovod_yolo.models.detector import Detector
from horovod_yolo.training.eager import eager
from horovod_yolo.training.ema import Ema
from horovod_yolo.training.musgd import MuSGD
from horovod_yolo.training.optimizers import (
    BIASES,
    NORMS,
    OPTIMIZERS,
    WEIGHTS,
    apply_rates,
    make_optimizer,
    parameter_groups,
    restore_optimizer,
    step_where,
    steps_where,
)
from horovod_yolo.training.schedule import Rates


@pytest.fixture
def model() -> Detector:
    with torch.device("meta"):
        return build_model("yolov5n", 3)


@pytest.mark.parametrize("synchronised", [False, True])
def test_groups_partition_the_trainable_parameters(model: Detector, synchronised: bool) -> None:
    if synchronised:
        synchronise_batch_norm(model, LocalCommunicator())
    groups = parameter_groups(model)
    flat = [id(p) for p in chain.from_iterable(groups)]
    assert len(flat) == len(set(flat))
    assert set(flat) == {id(p) for p in model.parameters()}
    assert all(p.ndim == 1 for p in groups[BIASES] + groups[NORMS])
    assert all(p.ndim == 4 for p in groups[WEIGHTS])
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [id(p) for p in groups[NORMS]] == [id(m.weight) for m in norms]
    assert len(groups[BIASES]) == len(norms) + 3  # and those of the head's three levels


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SGD", torch.optim.SGD),
        ("Adam", torch.optim.Adam),
        ("AdamW", torch.optim.AdamW),
        ("NAdam", torch.optim.NAdam),
        ("RAdam", torch.optim.RAdam),
        ("Adamax", torch.optim.Adamax),
        ("RMSProp", torch.optim.RMSprop),
        ("MuSGD", MuSGD),
    ],
)
def test_only_weights_decay(model: Detector, name: str, kind: type) -> None:
    optimizer = make_optimizer(name, model, lr=0.1, momentum=0.9, decay=0.5)
    assert type(optimizer).__bases__ == (kind,)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0, 0.5]
    for group, parameters in zip(optimizer.param_groups, parameter_groups(model), strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in parameters]


def test_sgd_uses_nesterovs_momentum(model: Detector) -> None:
    optimizer = make_optimizer("SGD", model, lr=0.1, momentum=0.9, decay=0.0)
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)
    without = make_optimizer("SGD", model, lr=0.1, momentum=0.0, decay=0.0)  # torch refuses both together
    assert not any(group["nesterov"] for group in without.param_groups)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_rates_reach_the_groups(model: Detector, name: str) -> None:
    optimizer = make_optimizer(name, model, lr=0.1, momentum=0.9, decay=0.0)
    apply_rates(optimizer, Rates(lr=0.01, bias_lr=0.07, momentum=0.85, beta1=0.92))
    assert [group["lr"] for group in optimizer.param_groups] == [0.07, 0.01, 0.01]
    for group in optimizer.param_groups:
        with_momentum = name in ("SGD", "RMSProp", "MuSGD")
        assert (group["momentum"] == 0.85) if with_momentum else (group["betas"] == (0.92, 0.999))


def test_there_are_those_that_can_be_asked_for() -> None:
    assert ("auto", *OPTIMIZERS) == get_args(OptimizerName)


def test_musgd_moves_class_branches_three_times_as_fast(
    model: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But their biases begin the warm-up at the rate of all biases."""
    branch = model.head.get_submodule("m.1")
    monkeypatch.setattr(type(model.head), "class_branches", lambda self: (branch,))
    optimizer = make_optimizer("MuSGD", model, lr=0.1, momentum=0.9, decay=0.5)
    whole = parameter_groups(model)
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups[3:]] == [
        [id(branch.get_parameter("bias"))], [], [id(branch.get_parameter("weight"))]
    ]  # fmt: skip
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0, 0.5] * 2
    trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in chain.from_iterable(whole))
    apply_rates(optimizer, Rates(lr=0.25, bias_lr=0.5, momentum=0.85, beta1=0.9))
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25, 0.25, 1.0, 0.75, 0.75]
    apply_rates(optimizer, Rates(lr=0.0, bias_lr=0.5, momentum=0.85, beta1=0.9))
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.0, 0.0, 0.5, 0.0, 0.0]
    others = make_optimizer("SGD", model, lr=0.1, momentum=0.9, decay=0.5)
    assert len(others.param_groups) == 3


@pytest.mark.parametrize(("name", "branches"), [("yolov8n", {"cv3"}), ("yolo26n", {"cv3", "one2one_cv3"})])
def test_the_fast_ones_are_those_of_the_class_branches(name: str, branches: set[str]) -> None:
    with torch.device("meta"):
        model = build_model(name, 3)
    optimizer = make_optimizer("MuSGD", model, lr=0.1, momentum=0.9, decay=0.5)
    fast = {id(p) for group in optimizer.param_groups[3:] for p in group["params"]}
    assert {group["lr_factor"] for group in optimizer.param_groups[3:]} == {3.0}
    assert fast == {
        id(p)
        for name, p in model.named_parameters()
        if name.startswith("head.") and name.split(".")[1] in branches
    }


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize("there", [False, True], ids=["the host knows", "the device knows"])
def test_average_against_the_formula(there: bool) -> None:
    torch.manual_seed(0)
    made, none = (torch.tensor(truth) if there else truth for truth in (True, False))
    model = small()
    ema = Ema(model, decay=0.9, tau=5.0)  # type: ignore[arg-type]  # a small module in a detector's place
    expected = {k: v.detach().clone() for k, v in model.state_dict().items()}
    for n in range(1, 8):
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.add_(torch.rand(tensor.shape) if tensor.is_floating_point() else 3)
        before = copy.deepcopy(ema.model.state_dict())
        ema.update(model, none)  # type: ignore[arg-type]
        assert all(torch.equal(value, before[key]) for key, value in ema.model.state_dict().items())
        ema.update(model, made)  # type: ignore[arg-type]
        d = 0.9 * (1 - math.exp(-n / 5.0))
        for key, value in model.state_dict().items():
            expected[key] = (
                d * expected[key] + (1 - d) * value if value.is_floating_point() else value.clone()
            )
    assert ema.updates == 7
    for key, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize(
    ("updates", "taken_in"),
    [
        (0, 1 - 0.9999 * (1 - math.exp(-1 / 2000))),  # nearly all of the first weights
        (1999, 1 - 0.9999 * (1 - math.exp(-1))),
        (10**6, 1e-4),  # a ten-thousandth, for ever
    ],
)
def test_the_average_is_as_long_as_yolov5s(updates: int, taken_in: float) -> None:
    model = small().double()
    ema = Ema(model)  # type: ignore[arg-type]
    ema.updates = updates
    with torch.no_grad():
        model[0].bias.copy_(ema.model.get_parameter("0.bias") + 1)  # type: ignore[operator]
        before = ema.model.get_parameter("0.bias").clone()
    ema.update(model)  # type: ignore[arg-type]
    moved = ema.model.get_parameter("0.bias") - before
    torch.testing.assert_close(moved, torch.full_like(moved, taken_in), rtol=1e-9, atol=0)


def test_the_average_is_a_model_of_its_own() -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    ema = Ema(model)  # type: ignore[arg-type]
    assert not ema.model.training and model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    for key, value in ema.model.state_dict().items():
        assert torch.equal(value, before[key])
    ema.update(model)  # type: ignore[arg-type]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_state_goes_on_where_one_kernel_makes_the_steps_and_where_not(name: str, fused: bool) -> None:
    """As on a GPU and on a CPU. An optimizer stays what it is, whichever the state was saved by."""
    models = [build_model("yolov5n", 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = []
    for model, one in zip(models, (fused, not fused), strict=True):
        optimizers.append(make_optimizer(name, model, lr=0.1, momentum=0.9, decay=0.01, fused=one))
    for parameter in models[0].parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizers[0].step()
    models[1].load_state_dict(models[0].state_dict())
    saved = optimizers[0].state_dict()
    restore_optimizer(optimizers[1], saved)
    assert steps_where(optimizers[1]) == (not fused and name != "NAdam")
    assert bool(saved["param_groups"][0].get("fused")) == (fused and name != "NAdam"), (
        "the state is as it was"
    )
    for model, optimizer in zip(models, optimizers, strict=True):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, -0.02)
        if steps_where(optimizer):
            step_where(optimizer, torch.tensor(True))
        else:
            optimizer.step()
    for mine, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", OPTIMIZERS.values())
def test_without_the_compiler_the_steps_are_torchs_own(kind: type[torch.optim.Optimizer]) -> None:
    """To the bit; and a state that one of them saved is the other's."""
    rng = torch.Generator().manual_seed(0)
    start, slopes = torch.randn(7, generator=rng), torch.randn(6, 7, generator=rng)
    moved, without = {}, eager(kind)
    for cls, other in ((kind, without), (without, kind)):
        weights = start.clone().requires_grad_()
        optimizer = cls([weights], lr=0.1, weight_decay=0.01)
        for number, slope in enumerate(slopes):
            if number == 3:
                saved = optimizer.state_dict()
                optimizer = other([weights], lr=0.5)
                optimizer.load_state_dict(saved)
            optimizer.zero_grad()
            weights.grad = slope.clone()
            optimizer.step()
        moved[cls] = weights.detach()
    assert torch.equal(*moved.values()) and not torch.equal(moved[kind], start)
