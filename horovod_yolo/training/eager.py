"""torch's optimizers for networks that are not compiled, which is all of ours.

PyTorch wraps methods of its optimizers so that ``torch.compile`` keeps out of them. The wrappers import the
compiler when an optimizer is made, which takes each rank about as long as torch itself, and 100 MB. The
methods inside are the ones that do the work.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

Kind = TypeVar("Kind", bound=Optimizer)
_WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def eager(kind: type[Kind]) -> type[Kind]:
    """The same optimizer, by the same name, without the compiler. It cannot be made ``differentiable``."""
    methods: dict[str, Any] = {name: _unwrapped(getattr(kind, name)) for name in _WRAPPED}
    methods["step"] = torch.no_grad()(_unwrapped(kind.step))
    return type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__})


def _unwrapped(method: Any) -> Any:
    """What ``functools.wraps`` was told of; a method that is not wrapped, as in other releases, is itself."""
    return getattr(method, "__wrapped__", method)
