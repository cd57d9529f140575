"""Files as the trainers of published models write them: modules of classes that are not installed here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from horovod_yolo.models.detector import Detector, published_names

V5 = {"whole": "models.yolo.DetectionModel", "head": "models.yolo.Detect", "part": "models.common.Conv"}
V8 = {
    "whole": "ultralytics.nn.tasks.DetectionModel",
    "head": "ultralytics.nn.modules.head.Detect",
    "part": "ultralytics.nn.modules.conv.Conv",
}


@contextmanager
def strange_classes(paths: Sequence[str]) -> Iterator[dict[str, type[nn.Module]]]:
    """Classes of modules by their full names, importable within the block only."""
    made: dict[str, ModuleType] = {}
    classes = {}
    for path in paths:
        package, _, name = path.rpartition(".")
        if package.split(".")[0] in sys.modules:
            raise RuntimeError(f"{package} is a real one here")
        for parent in accumulate(package.split("."), lambda *names: ".".join(names)):
            module = made.setdefault(parent, ModuleType(parent))
        classes[path] = type(name, (nn.Module,), {"__module__": package, "__qualname__": name})
        setattr(module, name, classes[path])
    sys.modules.update(made)
    try:
        yield classes
    finally:
        for package in made:
            del sys.modules[package]


def published_weights(model: Detector) -> dict[str, Tensor]:
    """A model's state by published keys."""
    return dict(zip(published_names(model), model.state_dict().values(), strict=True))


def modules_of(
    weights: Mapping[str, Tensor], classes: Mapping[str, type[nn.Module]], kinds: Mapping[str, str]
) -> nn.Module:
    """Nested modules whose ``state_dict()`` has these keys and, in half precision, these values."""
    top = classes[kinds["whole"]]()
    last = max(int(key.split(".")[1]) for key in weights)
    for key, value in weights.items():
        *path, name = key.split(".")
        module = top
        for depth, part in enumerate(path):
            if part not in module._modules:
                kind = kinds["head"] if path[:2] == ["model", str(last)] and depth == 1 else kinds["part"]
                module.add_module(
                    part, nn.ModuleList() if path[: depth + 1] == ["model"] else classes[kind]()
                )
            module = module._modules[part]  # type: ignore[assignment]  # just put there
        is_buffer = "running" in name or name in ("num_batches_tracked", "anchors")
        half = value.detach().clone().half() if value.is_floating_point() else value.clone()
        if is_buffer:
            module.register_buffer(name, half)
        else:
            module.register_parameter(name, nn.Parameter(half, requires_grad=False))
    return top


def save_published(
    path: Path,
    model: Detector,
    names: Sequence[str] | dict[int, str] | None,
    *,
    kinds: Mapping[str, str] = V5,
    ema: bool = False,
    activation: str = "",
    **beside: Any,
) -> dict[str, Tensor]:
    """Write a file of the trainers' kind.

    Args:
        path: where to.
        model: whose state it has.
        names: of the classes.
        kinds: of the modules.
        ema: as in the middle of a run, where ``model`` is another one than the averaged.
        activation: a class for the first block's ``act``.
        beside: more at the top, such as ``license``.

    Returns:
        Its weights by published keys, in half precision.
    """
    paths = [*dict.fromkeys([*kinds.values(), *([activation] if activation else [])])]
    with strange_classes(paths) as classes:
        whole = modules_of(published_weights(model), classes, kinds)
        whole.stride = torch.tensor([float(stride) for stride in model.strides])
        whole.names = names
        if activation:
            whole.get_submodule("model.0").add_module("act", classes[activation]())
        other = modules_of({k: v + 1 for k, v in published_weights(model).items()}, classes, kinds)
        content = {"epoch": -1, "model": other if ema else whole, "ema": whole if ema else None, **beside}
        torch.save(content, path)
        return whole.state_dict()
