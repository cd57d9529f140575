"""What a run's bits depend on that no setting names: processors, devices, and versions of what computes.

Ranks that are unlike in one of them make other bits of the same slice. That is said when the run starts, it
stays with the run, and ``results.json`` tells of it.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cv2
import torch

from horovod_yolo.assembly.compiling import FOLDER, compiler_of
from horovod_yolo.assembly.device import CUBLAS_SPACE, CUBLAS_WORKSPACE, device_name
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.agreement import agree, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.process.portable_bits import (
    FLAG,
    instruction_set,
    processor,
    require_portable_bits,
    variables,
)

log = logging.getLogger(__name__)
MOST_NAMED = 3
CPU = "cpu"
Kind = Mapping[str, str]
# With which anybody may have told the libraries to compute in fewer bits.
_SHORTER = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE")


def require_promise(config: TrainConfig, device: torch.device, comm: Communicator) -> None:
    """Raise where a setting would let kernels change from run to run. *Collective.*

    Args:
        config: of the run, which says how sums are made.
        device: of this rank.
        comm: the ranks.

    Raises:
        UserError: on all ranks alike.
    """
    together(comm, lambda: _require_promise(config, device))


def _require_promise(config: TrainConfig, device: torch.device) -> None:
    if config.portable_bits:
        require_portable_bits()
    if config.sums == "exact" and device.type != "cpu" and not config.deterministic:
        raise UserError(
            "--sums exact promises the same bits, and a GPU's kernels change from run to run",
            fix="add --deterministic, or leave --sums out",
        )
    workspace = os.environ.get(CUBLAS_WORKSPACE) or CUBLAS_SPACE
    if config.sums == "exact" and device.type == "cuda" and workspace != CUBLAS_SPACE:
        raise UserError(
            f"{workspace!r}: kernels are chosen by it, and --sums exact needs {CUBLAS_SPACE!r}",
            where=CUBLAS_WORKSPACE,
            fix="unset it",
        )


def kind_of(device: torch.device, *, portable: bool, compiles: bool = False) -> Kind:
    """What tells one kind of rank from another.

    With ``portable`` bits all x86 processors are of one, and where it ``compiles`` the compiler counts.
    """
    name, features = processor()
    told = [*_SHORTER, *(() if portable else variables(features))]
    kind = {
        "processor": "any x86" if portable else name,
        "instruction set": f"avx2 by {FLAG}" if portable else instruction_set(features),
        "variables": " ".join(f"{key}={os.environ[key]}" for key in told if os.environ.get(key)),
        "torch": str(torch.__version__),
        "oneDNN": (re.findall(r"MKL-DNN v([\d.]+)", torch.__config__.show()) or ["none"])[0],
        "NumPy": _version("numpy"),
        # Of any of its packages. What comes from PyPI has the number of its build too, with its own libjpeg.
        "OpenCV": getattr(getattr(cv2, "version", None), "opencv_version", cv2.__version__),
        "albumentations": _version("albumentations"),
        "Pillow": _version("pillow"),
        "SciPy": _version("scipy"),
        "device": CPU if device.type == CPU else device_name(device),
    }
    if device.type == "cuda":
        kind["cuDNN"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    if compiles:
        own = sorted(name for name in os.environ if name.startswith("TORCHINDUCTOR_") and name != FOLDER)
        kind["compiler"] = " ".join([compiler_of(device), *(f"{name}={os.environ[name]}" for name in own)])
    return kind


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _where_it_began(kept: Kind, here: Kind) -> Kind:
    """What a checkpoint says of that; what an older one leaves out is taken to be as it is ``here``."""
    known = {what: value for what, value in kept.items() if (what, value) != ("OpenCV", "none")}
    return {**here, "device": CPU, **known}  # an older one names a GPU alone, and one package of OpenCV


def compared(
    config: TrainConfig, device: torch.device, resumed: Mapping[str, Any] | None, comm: Communicator
) -> dict[str, Any]:
    """Compare the ranks, and with them those that the run began on; say where they differ. *Collective.*

    Returns:
        For the checkpoints: ``kind``, and ``unlike``, which is empty where all are alike and always were.
    """
    before = (resumed or {}).get("arithmetic", {})
    here = dict(kind_of(device, portable=config.portable_bits, compiles=config.compile))
    if resumed:
        here.pop("SciPy", None)  # it fits anchors when a run begins, and the checkpoint has them
    seen = comm.allgather_object((f"on {socket.gethostname()}", here))
    kind = _where_it_began(before["kind"], seen[0][1]) if before.get("kind") else seen[0][1]
    unlike = differences([("where the run began", kind), *seen])
    if unlike and unlike != before.get("unlike"):
        level = logging.WARNING if config.sums == "exact" else logging.INFO
        cure = "" if config.portable_bits else f"; {FLAG} makes all x86 processors compute alike"
        log.log(level, "not all of this run computes alike (%s), so bits may differ%s", unlike, cure)
    return {"arithmetic": {"kind": dict(kind), "unlike": before.get("unlike") or unlike}}


def full_gpu(device: torch.device, comm: Communicator) -> Callable[[], str | None] | None:
    """What says, when it is called, that a GPU has been full since now; *collective*. None on CPUs.

    Then cuDNN has perhaps taken a kernel that needs less, and adds otherwise.
    """
    if device.type == "cpu":
        return None
    before = _refusals(device)
    full = "a GPU was full, and cuDNN may have taken other kernels"
    return lambda: agree(comm, full if _refusals(device) > before else None)


def _refusals(device: torch.device) -> int:
    """How often PyTorch could not have memory of this device; only of CUDA's it is counted."""
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0)) if device.type == "cuda" else 0


def differences(seen: Sequence[tuple[str, Kind]]) -> str:
    """Where these kinds differ, each with who has it; empty where they are alike.

    What one of them does not say of itself is not compared with it.
    """
    words = []
    for what in dict.fromkeys(key for _, kind in seen for key in kind):
        having: dict[str, list[str]] = {}
        for who, kind in seen:
            if what in kind:
                having.setdefault(kind[what] or "none", []).append(who)
        if len(having) > 1:
            words.append(f"{what} " + ", ".join(f"{value} {_named(who)}" for value, who in having.items()))
    return "; ".join(words)


def _named(places: Sequence[str]) -> str:
    names = [*dict.fromkeys(places)]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return " and ".join(names[:MOST_NAMED]) + more
