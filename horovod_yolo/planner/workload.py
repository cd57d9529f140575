"""What a model asks of a machine, counted on the model itself without its memory: torch's meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import BatchNorm2d
from torch.utils.flop_counter import FlopCounterMode

from horovod_yolo.config.load import config_from_flags
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.gradient_groups import grouped
from horovod_yolo.families import zoo
from horovod_yolo.models.detector import Detector
from horovod_yolo.planner.timeline import Group

FLOAT32_BYTES = 4
# Weights, gradients, momentum and the average are kept in float32; AdamW keeps one more.
COPIES_OF_WEIGHTS = 5
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Workload:
    """Counted, not measured."""

    model: str
    imgsz: int
    parameters: int
    forward_flops: float  # of an image; a multiplication and an addition are two
    kept_bytes: float  # of an image, in float32: what the forward pass keeps for the backward pass
    groups: tuple[Group, ...]  # of gradients, in float32
    batch_norms: int
    matching_waits: bool  # normalisers can be summed only after the forward pass
    mosaic: float  # share of training images that are made of four

    @property
    def gradient_bytes(self) -> float:
        """Of all groups, in float32."""
        return sum(group.size for group in self.groups)

    @property
    def state_bytes(self) -> float:
        """What a rank holds whatever the batch."""
        return COPIES_OF_WEIGHTS * FLOAT32_BYTES * self.parameters

    def small_sums(self, sync_bn: bool) -> int:
        """How often in a step all ranks wait for a sum of a few numbers."""
        return 1 + self.matching_waits + (2 * self.batch_norms if sync_bn else 0)


@cache
def workload(name: str, classes: int, imgsz: int, group_mb: float) -> Workload:
    """Count what a step of a model asks for.

    Args:
        name: as for ``--cfg``.
        classes: of the data.
        imgsz: pixels of a side, rounded up to whole strides.
        group_mb: as for ``--fusion-mb``.

    Raises:
        UserError: unknown model, no class, or images that are too small.
    """
    with torch.device("meta"):
        model = zoo.build_model(name, classes).train()
        stride = max(model.strides)
        imgsz = -(-imgsz // stride) * stride
        if imgsz < 2 * stride:
            raise UserError(
                f"--img {imgsz} is too small: the coarsest map (stride {stride}) has one cell",
                fix=f"use {2 * stride} or more",
            )
        image = torch.empty(1, 3, imgsz, imgsz)
    kept = _Kept(model)
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(kept.note, _as_it_is):
        model(image)
    flops = {of: float(sum(ops.values())) for of, ops in counter.get_flop_counts().items()}
    family, settings = zoo.family_of(name), {"data": "none", "cfg": name}
    config = config_from_flags({**family.recipe.run, **settings}, family.recipe.hyp())
    return Workload(
        model=model.name,
        imgsz=imgsz,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        forward_flops=flops["Global"],
        kept_bytes=kept.size,
        groups=_groups(model, flops, group_mb),
        batch_norms=sum(isinstance(module, BatchNorm2d) for module in model.modules()),
        matching_waits=family.criterion(model, config).matching_needs_predictions,
        mosaic=float(getattr(family.recipe.hyp(), "mosaic", 0.0)),
    )


class _Kept:
    """Sums up the tensors that autograd keeps, each once, but for the weights."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._tensors: dict[int, Tensor] = {}  # held: a storage's address is given anew once it is free

    def note(self, tensor: Tensor) -> Tensor:
        self._tensors.setdefault(_storage(tensor), tensor)
        return tensor

    @property
    def size(self) -> float:
        """Bytes."""
        own = (tensor for at, tensor in self._tensors.items() if at not in self._weights)
        return float(sum(tensor.untyped_storage().nbytes() for tensor in own))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _groups(model: Detector, flops: Mapping[str, float], group_mb: float) -> tuple[Group, ...]:
    """The groups, each ready when the backward pass has come so far: it costs what the forward pass costs.

    Convolutions count; what else a layer does takes time in much the same proportion.
    """
    root = type(model).__name__
    of_parameter = {
        parameter: flops.get(f"{root}.{path}", 0.0)
        for path, module in model.named_modules()
        for parameter in module.parameters(recurse=False)
        if parameter.ndim > 1  # a bias is ready with its weights
    }
    total = sum(of_parameter.values())
    done, groups = 0.0, []
    for group in grouped(model.trained, group_mb * MEBIBYTE):
        done += sum(of_parameter.get(parameter, 0.0) for parameter in group)
        size = sum(parameter.numel() for parameter in group) * FLOAT32_BYTES
        groups.append(Group(float(size), done / total))
    return tuple(groups)
