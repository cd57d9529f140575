"""Where a rank computes, and how exactly."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic as torch_deterministic

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.training.step import Precision

MOST_NAMED = 3
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
    device = together(comm, lambda: choose_device(wanted, comm))
    found = comm.allgather_object((device.type, socket.gethostname()))
    hosts = {kind: list(dict.fromkeys(host for of, host in found if of == kind)) for kind, _ in found}
    if len(hosts) > 1:
        without = hosts.pop("cpu")
        having = [host for others in hosts.values() for host in others]
        raise UserError(
            f"no GPU can be used on {_named(without)}, and {_named(having)} would train on GPUs",
            fix="mend the driver (does nvidia-smi work there?), leave the host out, or use --device cpu",
        )
    return device


def _named(hosts: list[str]) -> str:
    return ", ".join(hosts[:MOST_NAMED]) + (
        f" and {len(hosts) - MOST_NAMED} more" if len(hosts) > MOST_NAMED else ""
    )


def choose_device(wanted: str, comm: Communicator) -> torch.device:
    """The device of this rank: the GPU of its local rank, or the CPU.

    Raises:
        UserError: a GPU that is not there, or fewer GPUs than ranks on this host.
    """
    if wanted == "cpu" or (not wanted and not torch.cuda.is_available()):
        return torch.device("cpu")
    numbers = [part.strip() for part in wanted.split(",")] if wanted else []
    if not all(part.isdigit() for part in numbers):
        raise UserError(f"--device is {wanted!r}", fix="use cpu, or GPU numbers such as 0 or 0,1")
    here = torch.cuda.device_count()
    gpus = [int(part) for part in numbers] or list(range(here))
    missing = [gpu for gpu in gpus if gpu >= here]
    if missing:
        raise UserError(
            f"--device names GPU {missing[0]}, this host has {here}", fix="use --device cpu, or fewer"
        )
    if comm.local_rank >= len(gpus):
        raise UserError(
            f"{comm.local_size} ranks on a host for {len(gpus)} GPUs",
            fix="launch one rank a GPU, or use --device cpu",
        )
    device = torch.device("cuda", gpus[comm.local_rank])
    torch.cuda.set_device(device)
    return device


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """``auto`` is fp16 on GPUs and fp32 on CPUs."""
    name = wanted if wanted != "auto" else ("fp16" if device.type == "cuda" else "fp32")
    return Precision(device=device, dtype=DTYPES[name])


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
    cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
    if deterministic:
        cudnn.deterministic, cudnn.benchmark = True, False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
        torch_deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
        torch_deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        torch.set_deterministic_debug_mode(mode)
