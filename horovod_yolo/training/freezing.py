"""``--freeze``: parts of a model that stay as they are."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from torch import nn

from horovod_yolo.config.schema import Freeze
from horovod_yolo.core.errors import UserError
from horovod_yolo.models.batch_norm import BatchNorm2d
from horovod_yolo.models.detector import Detector, published_names

log = logging.getLogger(__name__)


def freeze(model: Detector, wanted: Freeze) -> None:
    """Train what ``wanted`` names no more, and keep the running statistics of its batch norms.

    What is frozen has no gradient, so that no optimizer holds it and no rank sends anything of it.

    Raises:
        UserError: as `frozen_parameters`.
    """
    frozen = frozen_parameters(model, wanted)
    if not frozen:
        return
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
            module.fix()
    size = sum(model.get_parameter(name).numel() for name in frozen)
    total = sum(p.numel() for p in model.parameters())
    log.info(
        "--freeze: %d of %d parameters (%d tensors) stay as they are, and their batch norm's statistics",
        *(size, total, len(frozen)),
    )


def frozen_parameters(model: Detector, wanted: Freeze) -> list[str]:
    """Our names of the parameters that ``--freeze`` is about.

    Args:
        model: on whatever device, also without values.
        wanted: one number N: the first N rows of the published table of layers; several: these rows; or
            names, published ones (``model.24.m``) or ours (``backbone``), each for all that it begins.

    Raises:
        UserError: the model has no such row or name, or nothing would be left to train.
    """
    published = dict(zip(model.state_dict(), published_names(model), strict=True))
    names = [name for name, _ in model.named_parameters()]
    if isinstance(wanted[0], str):
        frozen = [name for prefix in wanted for name in _named(str(prefix), names, published)]
    else:
        rows = _rows(model, [int(row) for row in wanted])
        frozen = [name for name in names if int(published[name].split(".")[1]) in rows]
    if all(not p.requires_grad or name in frozen for name, p in model.named_parameters()):
        raise UserError("--freeze leaves nothing to train", fix=f"{model.name} has {_row_names(model)}")
    return list(dict.fromkeys(frozen))


def held(model: nn.Module) -> set[str]:
    """The keys of a model's state that training does not change: what is frozen or never trained."""
    keys = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm2d) and module.fixed:
            keys |= {f"{name}.{key}" for key, _ in module.named_buffers()}
    return keys


def _rows(model: Detector, wanted: Sequence[int]) -> Collection[int]:
    if len(wanted) == 1:
        return range(wanted[0])
    for row in wanted:
        if row > model.head.layer:
            raise UserError(f"--freeze {row}: no such layer", fix=f"{model.name} has {_row_names(model)}")
    return set(wanted)


def _row_names(model: Detector) -> str:
    return f"layers 0 to {model.head.layer}, the last of which is the head"


def _named(prefix: str, names: Sequence[str], published: dict[str, str]) -> list[str]:
    """The parameters whose published name or ours is ``prefix`` or goes on behind it with a dot."""
    wanted = prefix.strip().strip(".").split(".")

    def begins(name: str, parts: Sequence[str]) -> bool:
        return any(key.split(".")[: len(parts)] == list(parts) for key in (name, published[name]))

    found = [name for name in names if begins(name, wanted)]
    if found:
        return found
    known = max(k for k in range(len(wanted)) if any(begins(name, wanted[:k]) for name in names))
    keys = [key.split(".") for name in names for key in (published[name], name)]
    there = dict.fromkeys(key[known] for key in keys if key[:known] == wanted[:known] and key[known:])
    where = ".".join(wanted[:known]) or "the model"
    fix = f"{where} has {', '.join(there)}" if there else f"{where} is a whole name"
    raise UserError(f"--freeze {prefix}: no such name", fix=fix)
