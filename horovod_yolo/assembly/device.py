"""Where a rank computes, and how exactly."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils import deterministic as torch_deterministic

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.precision import Precision
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.process.portable_bits import processor

MOST_NAMED = 3
CPU = torch.device("cpu")
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_SPACE = ":4096:8"  # eight buffers of 4 MiB: which one a product gets decides nothing
GPU_FILE = Path("/dev/nvidia0")  # the driver makes it, before and without PyTorch
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}


def agreed_device(wanted: str, comm: Communicator) -> torch.device:
    """This rank's device, of the same kind on all ranks. *Collective.*

    Without a wish each host takes what it finds, and where a GPU's driver is broken torch finds none: its
    ranks would train on the CPU, and the others' first exchange would fail for no visible reason.

    Raises:
        UserError: on all ranks alike, also where only one rank has no such device.
    """
    device = together(comm, lambda: choose_device(wanted, _place_on_host(comm)))
    found = comm.allgather_object((device.type, socket.gethostname()))
    hosts = {kind: list(dict.fromkeys(host for of, host in found if of == kind)) for kind, _ in found}
    if len(hosts) > 1:
        without = hosts.pop("cpu")
        having = [host for others in hosts.values() for host in others]
        raise UserError(
            f"no GPU can be used on {_named(without)}, and {_named(having)} would train on GPUs",
            fix="mend the driver (does nvidia-smi work there?), leave the host out, or use --device cpu",
        )
    if device.type == "cuda" and comm.one_rank_a_gpu:
        _require_own_gpus(device, comm)
    return device


def _place_on_host(comm: Communicator) -> int:
    """Number among all ranks of this host: those of a search may be in several groups."""
    launched = launcher()
    in_group = launched.over_mpi and comm.size < launched.size
    return launched.local_rank or 0 if in_group else comm.local_rank


def _require_own_gpus(device: torch.device, comm: Communicator) -> None:
    """Raise where two ranks have one GPU. *Collective.*

    It is known by its UUID: ranks in containers of their own, or started with one visible GPU each, all say
    GPU 0, and one host may have two names.
    """
    found = comm.allgather_object((gpu_uuid(device), socket.gethostname()))
    ranks = {uuid: [rank for rank, (of, _) in enumerate(found) if of == uuid] for uuid, _ in found}
    shared = next((of for of in ranks.values() if len(of) > 1), None)
    if shared:
        listed = ", ".join(map(str, shared[:MOST_NAMED]))
        raise UserError(
            f"ranks {listed} on {found[shared[0]][1]} would share a GPU, which NCCL cannot",
            fix=f"launch one rank a GPU (-np {len(ranks)}), use --device cpu, or do without NCCL: over Gloo "
            "ranks share GPUs (--engine torch: HOROVOD_YOLO_NCCL=0; Horovod: built without it)",
        )


def gpu_uuid(device: torch.device) -> str:
    """What tells a GPU from all others, whatever number and host name it goes by."""
    properties = torch.cuda.get_device_properties(device)
    return str(getattr(properties, "uuid", f"{socket.gethostname()} {device.index}"))  # torch < 2.4 has none


def _named(hosts: list[str]) -> str:
    return ", ".join(hosts[:MOST_NAMED]) + (
        f" and {len(hosts) - MOST_NAMED} more" if len(hosts) > MOST_NAMED else ""
    )


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """The device of a rank: the GPU of its local rank, or the CPU. Ranks that are too many share GPUs.

    ``wanted`` is ``--device``: empty for GPUs where PyTorch finds some, else the CPU; ``cpu``; numbers of
    GPUs, ``0,1`` or ``cuda:0,1``; or another kind of device that PyTorch has, ``xpu`` or ``xpu:0,1``.

    Raises:
        UserError: a device that is not there.
    """
    if wanted == "cpu" or (not wanted and not torch.cuda.is_available()):
        _require_no_lost_gpu(wanted)
        return CPU
    kind, numbers = _parsed(wanted)
    module = getattr(torch, kind)
    here = module.device_count() if module.is_available() else 0
    devices = numbers or list(range(here))
    missing = [number for number in devices if number >= here]
    if missing or not devices:
        what = "GPU" if kind == "cuda" else kind
        raise UserError(
            f"--device names {what} {missing[0] if missing else ''}".rstrip() + f", this host has {here}",
            fix="use --device cpu, or fewer",
        )
    device = torch.device(kind, devices[local_rank % len(devices)])
    module.set_device(device)
    return device


def _parsed(wanted: str) -> tuple[str, list[int]]:
    """Kind and numbers of devices in ``--device``; no numbers where it names none."""
    head, colon, tail = wanted.partition(":")
    kind, listed = (head, tail) if colon or head.isalpha() else ("cuda", wanted)
    numbers = [part.strip() for part in listed.split(",")] if listed else []
    known = hasattr(getattr(torch, kind, None), "device_count")
    if not known or not all(part.isascii() and part.isdigit() for part in numbers):
        raise UserError(f"--device is {wanted!r}", fix="use cpu, or GPU numbers such as 0 or 0,1")
    return kind, [int(part) for part in numbers]


def _require_no_lost_gpu(wanted: str) -> None:
    """Raise where this host has an NVIDIA GPU that PyTorch cannot use, and nobody asked for the CPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if not wanted and not hidden and GPU_FILE.exists():
        why = (
            "this torch is built without CUDA" if torch.version.cuda is None else "the driver does not answer"
        )
        raise UserError(
            f"this host has a GPU ({GPU_FILE}) that PyTorch cannot use: {why}",
            fix="mend that, or use --device cpu",
        )


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """``auto`` is fp16 on GPUs and fp32 on CPUs.

    Raises:
        UserError: fp16 on a CPU, which has no fast kernels for it and a loss scaler for nothing.
    """
    name = precision_name(wanted, device)
    if name == "fp16" and device.type == "cpu":
        fix = "use --precision bf16 or fp32; a run that began in fp16 goes on on a GPU"
        raise UserError("--precision fp16 needs a GPU, this is a CPU", fix=fix)
    return Precision(device=device, dtype=DTYPES[name])


def precision_name(wanted: str, device: torch.device) -> str:
    """What ``auto`` stands for on this device."""
    return wanted if wanted != "auto" else ("fp32" if device.type == "cpu" else "fp16")


def device_name(device: torch.device) -> str:
    """As its maker calls it, where torch knows; ``cpu`` for processors."""
    named = getattr(getattr(torch, device.type), "get_device_name", None)
    return device.type if named is None else str(named(device))


def device_kind(device: torch.device, *, deterministic: bool) -> str:
    """What a rank computes on: those with equal ones are expected to compute the same bits.

    Raises:
        UserError: the device does not compute the same bits every time; on all ranks alike.
    """
    if device.type != "cpu":
        if not deterministic:
            fix = "add --deterministic"
            raise UserError("--check-every needs the same bits in every computation on a GPU", fix=fix)
        return f"{device_name(device)}, torch {torch.__version__}"
    model, _ = processor()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def pinned(device: torch.device) -> bool:
    """Whether batches for it belong in page-locked memory: copies from there run beside the computation.

    For a GPU only: to pin is to make a CUDA context, some hundred MB on a GPU that may be another's.
    """
    return device.type == "cuda"


@contextmanager
def arithmetic(precision: str, *, deterministic: bool = False) -> Iterator[None]:
    """Inside, float32 is float32, or TF32 where ``precision`` says so; and sums keep their order, if asked.

    TF32 has float32's range and 10 bits of mantissa; PyTorch's own default lets cuDNN's convolutions use it.

    Args:
        precision: the name of the number format of the forward pass.
        deterministic: the same input gives the same bits on the same GPU and software. An operation that has
            no such kernel raises `RuntimeError`.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark)
    mode, filling = (
        torch.get_deterministic_debug_mode(),
        torch_deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
    if deterministic:
        cudnn.deterministic, cudnn.benchmark = True, False
        os.environ[CUBLAS_WORKSPACE] = workspace or CUBLAS_SPACE  # else cuBLAS refuses
        torch_deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
        torch_deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        torch.set_deterministic_debug_mode(mode)
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)
