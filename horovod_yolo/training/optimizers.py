"""Optimizers with YOLOv5's three parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from horovod_yolo.checkpoint.state import copied
from horovod_yolo.models.detector import Detector
from horovod_yolo.training.eager import eager
from horovod_yolo.training.musgd import MuSGD
from horovod_yolo.training.schedule import Rates

GROUPS = 3
BIASES, NORMS, WEIGHTS = range(GROUPS)  # positions: as in YOLOv5's results.csv, lr0 is the biases'
CLASS_BRANCH_LR = 3.0  # factor on the learning rate, with MuSGD
OPTIMIZERS: Mapping[str, Any] = {
    "SGD": SGD,
    "Adam": Adam,
    "AdamW": AdamW,
    "NAdam": NAdam,
    "RAdam": RAdam,
    "Adamax": Adamax,
    "RMSProp": RMSprop,
    "MuSGD": MuSGD,
}


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (biases, batch-norm weights, other weights); only the last decays."""
    norms = {id(m.weight) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    groups: tuple[list[nn.Parameter], ...] = ([], [], [])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith(".bias"):
            groups[BIASES].append(parameter)
        elif id(parameter) in norms:
            groups[NORMS].append(parameter)
        else:
            groups[WEIGHTS].append(parameter)
    return groups[BIASES], groups[NORMS], groups[WEIGHTS]


def make_optimizer(
    name: str, model: Detector, *, lr: float, momentum: float, decay: float, fused: bool | None = None
) -> Optimizer:
    """One of `OPTIMIZERS`. SGD has Nesterov momentum; where there are betas, ``momentum`` is the first.

    ``fused`` is whether one kernel steps all parameters, and may leave it on the device's own word (see
    `step_where`); None: on a device, where PyTorch has such a kernel.
    """
    decays = (0.0, 0.0, decay)  # of biases, norms, weights
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": own}
        for parameters, own in zip(parameter_groups(model), decays, strict=True)
    ]
    kind = eager(OPTIMIZERS[name])
    options: dict[str, Any] = {"momentum": momentum}
    if name == "MuSGD":
        groups = _with_fast_groups(groups, model.head.class_branches())
    elif name == "SGD":
        options["nesterov"] = momentum > 0
    elif name != "RMSProp":
        options = {"betas": (momentum, 0.999)}
    if fused is None:
        fused = next(model.parameters()).device.type != "cpu"
    if fused and "fused" in inspect.signature(OPTIMIZERS[name]).parameters:
        options["fused"] = True
    optimizer: Optimizer = kind(groups, lr=lr, **options)
    return optimizer


def _with_fast_groups(groups: list[dict[str, Any]], branches: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """The groups without the parameters of some branches, then three more with those alone."""
    fast = {id(parameter) for branch in branches for parameter in branch.parameters()}
    if not fast:
        return groups
    slow = [{**group, "params": [p for p in group["params"] if id(p) not in fast]} for group in groups]
    return slow + [
        {**group, "params": [p for p in group["params"] if id(p) in fast], "lr_factor": CLASS_BRANCH_LR}
        for group in groups
    ]


def steps_where(optimizer: Optimizer) -> bool:
    """Whether `step_where` is for it."""
    return all(group.get("fused") for group in optimizer.param_groups)


def step_where(optimizer: Any, finite: Tensor) -> None:
    """Make a step, or none where () ``finite`` is false, which only the device knows."""
    for group in optimizer.param_groups:
        if group.get("momentum"):
            for parameter in group["params"]:
                # PyTorch's own is not filled where the first step is none.
                if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    optimizer.found_inf = finite.logical_not().float()
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Give it a state that a run may have saved on another kind of device.

    A copy: the optimizer takes the tensors themselves, and an elastic run may begin from these once more.
    """
    own_copy: dict[str, Any] = copied(state)
    for own, saved in zip(optimizer.param_groups, own_copy["param_groups"], strict=True):
        if "fused" in own:
            saved["fused"] = own["fused"]
    optimizer.load_state_dict(own_copy)


def apply_rates(optimizer: Optimizer, rates: Rates) -> None:
    """Set the learning rate and momentum of all groups for the next step.

    Only SGD's momentum warms up: Adam's first beta corrects its own bias from the first step on. A factor is
    on the rate that a group warms up to, not on the one that biases start from.
    """
    for number, group in enumerate(optimizer.param_groups):
        plain = rates.bias_lr if number % GROUPS == BIASES else rates.lr
        group["lr"] = plain + (group.get("lr_factor", 1.0) - 1.0) * rates.lr
        if "betas" in group:
            group["betas"] = (rates.beta1, group["betas"][1])
        else:
            group["momentum"] = rates.momentum
