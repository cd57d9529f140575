"""Optimizers with YOLOv5's three parameter groups."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from horovod_yolo.training.eager import eager
from horovod_yolo.training.schedule import Rates

BIASES, NORMS, WEIGHTS = range(3)  # positions of the groups: as in YOLOv5's results.csv, lr0 is the biases'


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


def make_optimizer(name: str, model: nn.Module, *, lr: float, momentum: float, decay: float) -> Optimizer:
    """SGD with Nesterov momentum, Adam or AdamW (``momentum`` is beta1 there)."""
    biases, norms, weights = parameter_groups(model)
    groups = [
        {"params": biases, "weight_decay": 0.0},
        {"params": norms, "weight_decay": 0.0},
        {"params": weights, "weight_decay": decay},
    ]
    if name == "SGD":
        return eager(SGD)(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    if name == "Adam":
        return eager(Adam)(groups, lr=lr, betas=(momentum, 0.999))
    assert name == "AdamW", name
    return eager(AdamW)(groups, lr=lr, betas=(momentum, 0.999))


def apply_rates(optimizer: Optimizer, rates: Rates) -> None:
    """Set the learning rate and momentum of all groups for the next step.

    Only SGD's momentum warms up: Adam's first beta corrects its own bias from the first step on.
    """
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = rates.bias_lr if number == BIASES else rates.lr
        if "betas" in group:
            group["betas"] = (rates.beta1, group["betas"][1])
        else:
            group["momentum"] = rates.momentum


def freeze(model: nn.Module, published_names: dict[str, str], layers: set[int]) -> None:
    """Stop training the given layers (numbers of the published layout: 10 first ones are the backbone).

    ``published_names`` maps our parameter names to ``model.<layer>. ...``.
    """
    for name, parameter in model.named_parameters():
        if int(published_names[name].split(".")[1]) in layers:
            parameter.requires_grad_(False)
