"""A pretend accelerator in pure Python: a device of PyTorch's, named ``pretend``, for machines without one.

Its tensors live in the CPU's memory, so what is computed is real. It is strict where a GPU is: an operation
on tensors of two devices is an error (but for what CUDA allows too: scalars, and indices on the CPU). And it
notes what costs time there: what makes the CPU wait for the device, and copies to it.

It is PyTorch's own extension point for other makers' devices (PrivateUse1), filled by a tensor subclass. Once
imported it is known to the process for good; nothing but ``device="pretend"`` leads to it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretend"
PACKAGE = "/horovod_yolo/"
CPU = torch.device("cpu")
# Their result's size or value is needed on the CPU before it can go on.
WAITING = {
    "aten::_local_scalar_dense",  # item, float, int, bool
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::unique_dim",
}
ANY_INDEX = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}  # indices may be on the CPU
COPIES = {"aten::_to_copy", "aten::copy_"}
AUTOCAST_TO_NARROW = ("conv2d", "convolution", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm")
AUTOCAST_TO_WIDEST = ("cat", "stack")
FORMATS = [torch.float16, torch.bfloat16]


@dataclass
class Log:
    """What would have cost time on a real device, each with the lines of the package that led to it."""

    waits: list[str] = field(default_factory=list)
    copies_to_device: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Forget all of it."""
        for notes in (self.waits, self.copies_to_device, self.operations):
            notes.clear()


log = Log()


class PretendTensor(torch.Tensor):
    """A tensor of the device; ``held`` is the CPU's tensor with its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        wrapper: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
            requires_grad=held.requires_grad,
        )
        wrapper.held = held
        return wrapper

    def tolist(self) -> Any:
        """The values, after a wait."""
        log.waits.append(_noted("tolist"))
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as for a GPU's tensor."""
        raise TypeError(f"can't convert {NAME} device type tensor to numpy; use Tensor.cpu() first")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sees ``torch.zeros(..., device="pretend")`` too, which no tensor of the device leads to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretend_device() -> Iterator[Log]:
    """Inside, ``torch.device("pretend")`` can be used; gives its log, empty at first.

    Backward passes run in the caller's thread: PyTorch starts those for devices once in a process, for the
    devices it knows by then.
    """
    log.clear()
    with _Factories(), torch.autograd.set_multithreading_enabled(False):
        yield log


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do on the CPU what is asked of the device, and note what it would cost there."""
    name = func.name().split(".")[0]
    tensors: list[Tensor] = []
    real_args, real_kwargs = _each_tensor((args, kwargs), lambda tensor: _held(tensor, tensors))
    ours = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    wanted = kwargs.get("device")
    target = None if wanted is None else torch.device(wanted).type
    _require_one_device(func, name, tensors, ours)
    if ours or target == NAME:
        _note(name, args, kwargs, bool(ours), target)
    if target == NAME:
        real_kwargs["device"] = CPU
    result = func(*real_args, **real_kwargs)
    if name == "aten::copy_":
        return args[0]
    if target not in (None, NAME) or (target is None and not ours):
        return result
    wrappers = {id(tensor.held): tensor for tensor in ours}  # an operation in place gives its own argument
    return _each_tensor(result, lambda t: wrappers[id(t)] if id(t) in wrappers else PretendTensor(t))


def _each_tensor(value: Any, make: Callable[[Tensor], Any]) -> Any:
    """Nested builtins with what ``make`` makes of each tensor; PyTorch's own takes longer than a step."""
    if isinstance(value, Tensor):
        return make(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_each_tensor(item, make) for item in value])
    if isinstance(value, dict):
        return {key: _each_tensor(item, make) for key, item in value.items()}
    return value


def _held(tensor: Tensor, seen: list[Tensor]) -> Tensor:
    seen.append(tensor)
    return tensor.held if isinstance(tensor, PretendTensor) else tensor


def _require_one_device(
    func: Any, name: str, tensors: Sequence[Tensor], ours: Sequence[PretendTensor]
) -> None:
    strangers = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.dim() > 0]
    if ours and strangers and name not in COPIES | ANY_INDEX:
        shapes = [(str(tensor.device), tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {shapes}")


def _note(name: str, args: Any, kwargs: dict[str, Any], from_device: bool, target: str | None) -> None:
    log.operations.append(name)
    waits = name in WAITING or (name == "aten::repeat_interleave" and kwargs.get("output_size") is None)
    if name == "aten::copy_":
        target, from_device = args[0].device.type, isinstance(args[1], PretendTensor)
    if name in COPIES and from_device and target == "cpu":
        waits = not (args[2:] or (kwargs.get("non_blocking"),))[0]
    if waits:
        log.waits.append(_noted(name))
    if name in COPIES and target == NAME and not from_device:
        log.copies_to_device.append(_noted(name))


def _noted(name: str) -> str:
    """The operation and where in the package it was asked for, innermost first."""
    lines = [
        f"{frame.filename.rsplit('/', 1)[1]}:{frame.lineno}"
        for frame in reversed(traceback.extract_stack())
        if PACKAGE in frame.filename and "/tests/" not in frame.filename
    ]
    return " < ".join([name.removeprefix("aten::"), *lines])


class _Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    """What PyTorch asks of ``torch.pretend``."""

    def set_device(self, device: torch.device) -> None:
        """There is but one."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return FORMATS

    class Event:
        """A moment in what the device has to do. Whoever waits for it is noted, also where it is over."""

        def record(self) -> None:
            """Now is the moment."""

        def synchronize(self) -> None:
            """Wait for it."""
            log.waits.append(_noted("synchronize"))


def _without_autocast() -> Any:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    return torch._C._ExcludeDispatchKeyGuard(keys)


def _casting(operation: Any, to: Callable[[list[Tensor]], torch.dtype]) -> Callable[..., Any]:
    """The kernel of an operation under autocast: floating-point tensors in one format, then the operation."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _without_autocast():
            floats: list[Tensor] = []
            _each_tensor(args, lambda t: floats.append(t) if t.is_floating_point() else None)
            dtype = to(floats)
            args = _each_tensor(args, lambda t: t.to(dtype) if t.is_floating_point() else t)
            return operation(*args, **kwargs)

    return kernel


def _narrow(_: list[Tensor]) -> torch.dtype:
    return torch.get_autocast_dtype(NAME)


def _widest(tensors: list[Tensor]) -> torch.dtype:
    wide = any(tensor.dtype not in FORMATS for tensor in tensors)
    return torch.float32 if wide else _narrow(tensors)


def _empty(size: Any, dtype: Any = None, **_: Any) -> Tensor:
    return PretendTensor(torch.empty(size, dtype=dtype, device=CPU))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype, device=CPU))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    result: Tensor = _run(torch.ops.aten.copy_.default, (target, source, non_blocking), {})
    return result


def _register() -> tuple[torch.library.Library, ...]:
    """Make the device known to PyTorch; what comes back has to be kept."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    for names, to in ((AUTOCAST_TO_NARROW, _narrow), (AUTOCAST_TO_WIDEST, _widest)):
        for name in names:
            packet = getattr(torch.ops.aten, name)
            aten.impl(name, _casting(packet, to), "AutocastPrivateUse1")
    # What is made within operations that PyTorch composes of others does not pass by the mode.
    aten.impl("empty.memory_format", _empty, "PrivateUse1")
    aten.impl("empty_strided", _empty_strided, "PrivateUse1")
    aten.impl("_copy_from", _copy_from, "PrivateUse1")
    return everything, aten


_KEPT = _register()
