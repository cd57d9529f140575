"""Ranks that talk through ``torch.distributed``: over Gloo on CPUs, NCCL on GPUs.

Its calls have no names: what the ranks call must come in the same order on all of them. Sums of the forward
and backward pass do. Gradients come when they are ready, which may be another moment on each rank, so they
have a process group of their own, and leave in the order of their groups.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.optim import Optimizer

from horovod_yolo.core.errors import UnmetError
from horovod_yolo.distributed import lateness
from horovod_yolo.distributed.communicator import GradientExchange, Messages, Pending
from horovod_yolo.distributed.gradient_groups import Group, GroupedExchange
from horovod_yolo.distributed.keepalive import watch_connections
from horovod_yolo.distributed.lateness import Lateness
from horovod_yolo.distributed.launchers.launcher import Launcher
from horovod_yolo.distributed.local import Ready
from horovod_yolo.distributed.meeting import INTERFACE, meet
from horovod_yolo.process.environment import number
from horovod_yolo.process.interfaces import route_interface

T = TypeVar("T")
NCCL = "HOROVOD_YOLO_NCCL"  # 0: ranks on GPUs talk through Gloo, and may share one
# A call that a rank does not come to ends the job: as with Horovod after what one rank may do alone.
ENDED_AFTER, SECONDS_OF_PATIENCE = "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", 600
_FOR_EVER = 10_000_000
_OUTSIDE = "198.51.100.1"  # of no network (RFC 5737): asks for the way there, and sends nothing


class LostRankError(RuntimeError):
    """Another rank is gone, or does not answer."""


class TorchCommunicator:
    """A job started by ``torchrun``, or by an MPI launcher whose ranks are to talk through torch."""

    lost_errors: tuple[type[Exception], ...] = (LostRankError,)
    wire_types: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)

    def __init__(self, store: Store, local_rank: int | None, local_size: int | None) -> None:
        """Of a process group that is there. *Collective.*

        Args:
            store: that its ranks have, and nobody else.
            local_rank: number among the ranks of this host, as its launcher says, if it does.
            local_size: their number, likewise.
        """
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()
        self.wait_s = 0.0
        self.one_rank_a_gpu = has_nccl()
        seconds = number(lateness.VARIABLE, lateness.SECONDS_OF_PATIENCE)
        self._lateness = Lateness(self.rank, self.size, store, seconds)
        self.of_gradients: Any = dist.new_group(timeout=_patience())
        if local_rank is None or local_size is None:
            hosts = self.allgather_object(socket.gethostname())
            local_rank, local_size = hosts[: self.rank].count(hosts[self.rank]), hosts.count(hosts[self.rank])
        self.local_rank: int = local_rank
        self.local_size: int = local_size
        self._lateness.start()
        watch_connections()

    @classmethod
    def join(cls, launched: Launcher) -> TorchCommunicator:
        """Find the other ranks of the job. *Collective.*

        Raises:
            UnmetError: they are not found.
            UserError: their launcher does not let them find each other.
        """
        _choose_interface(launched)
        kinds = "cpu:gloo,cuda:nccl" if has_nccl() else "gloo"
        try:
            store = meet(launched, _patience())
            dist.init_process_group(
                kinds, store=store, rank=launched.rank, world_size=launched.size, timeout=_patience()
            )
            return cls(store, launched.local_rank, launched.local_size)
        except (RuntimeError, ValueError) as error:
            raise UnmetError(
                f"rank {launched.rank} of {launched.size} does not find the others "
                f"({str(error).splitlines()[0]})",
                fix="can this host reach MASTER_ADDR at MASTER_PORT, and does each host's name lead to it?",
            ) from None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for other ranks; their loss is a `LostRankError`."""
        start = time.perf_counter()
        self._lateness.come()
        try:
            yield
        except RuntimeError as error:
            raise LostRankError(str(error)) from error
        finally:
            self._lateness.go()
            self.wait_s += time.perf_counter() - start

    @property
    def messages(self) -> Messages:
        """Sums in the gradients' own group: they may leave earlier or later than others, on each rank."""
        return _Messages(self)

    def allreduce_sum(self, tensor: Tensor, name: str) -> Pending:
        """Start summing a tensor over ranks. *Collective.*"""
        return self._start(tensor, dist.ReduceOp.SUM)

    def allreduce_max(self, tensor: Tensor, name: str) -> Pending:
        """Start looking for the largest value at each place. *Collective.*"""
        return self._start(tensor, dist.ReduceOp.MAX)

    def _start(self, tensor: Tensor, op: Any) -> Pending:
        if self.size == 1 or not tensor.numel():
            return Ready(tensor)
        result = tensor.detach().clone(memory_format=torch.contiguous_format)
        with self.waiting():
            return _Handle(dist.all_reduce(result, op=op, async_op=True), result, self)

    def allgather_object(self, value: T) -> list[T]:
        """Everyone's value, by rank. *Collective.*"""
        everyone: list[Any] = [None] * self.size
        with self.waiting():
            dist.all_gather_object(everyone, value)
        return everyone

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value. *Collective.*"""
        box = [value]
        with self.waiting():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite everyone's tensors with rank 0's. *Collective.*"""
        with self.waiting(), torch.no_grad():
            for name in sorted(tensors):
                travelling = tensors[name].detach().clone(memory_format=torch.contiguous_format)
                dist.broadcast(travelling, 0)
                tensors[name].copy_(travelling)

    def exchange_gradients(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        wire: torch.dtype | None,
        group_mb: float,
    ) -> tuple[Optimizer, GradientExchange]:
        """Sum gradients while ``backward()`` runs; the optimizer stays as it is. *Collective.*"""
        parameters = [parameter for _, parameter in named_parameters]
        return optimizer, _TorchExchange(parameters, self, group_mb, wire)

    def close(self) -> None:
        """Leave the job in order.

        A group's threads end with the last reference to it. Left to the end of the interpreter, one that
        drops its last tensor then aborts the process.
        """
        self.of_gradients = None
        dist.destroy_process_group()


class _Messages:
    def __init__(self, comm: TorchCommunicator) -> None:
        self._comm = comm

    def sum_in_place(self, tensor: Tensor, name: str) -> Pending:
        with self._comm.waiting():
            work = dist.all_reduce(tensor, group=self._comm.of_gradients, async_op=True)
        return _Handle(work, tensor, self._comm)


class _Handle:
    def __init__(self, work: Any, result: Tensor, comm: TorchCommunicator) -> None:
        self._work = work
        self._result = result
        self._comm = comm

    def wait(self) -> Tensor:
        with self._comm.waiting():
            self._work.wait()
        return self._result


class _TorchExchange(GroupedExchange):
    """Gradients as they are, or in a shorter type."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        comm: TorchCommunicator,
        group_mb: float,
        wire: torch.dtype | None,
    ) -> None:
        super().__init__(parameters, comm.messages, group_mb, wire or parameters[0].dtype)
        self._comm = comm
        self._watched = False
        self.expect(1)

    def expect(self, slices: int, *, passes: int = 1, of_all: int | None = None) -> None:
        """See `GradientExchange`. Slices add up where passes do."""
        self._begin(1, slices * passes)

    def _fill(self, group: Group, gradients: list[Tensor]) -> None:
        torch._foreach_copy_(group.places, gradients)
        group.filled = True

    def _give(self, group: Group) -> None:
        for parameter, place in zip(group.parameters, group.places, strict=True):
            parameter.grad = place if place.dtype == parameter.dtype else place.to(parameter.dtype)

    def finish(self) -> bool:
        """See `GradientExchange`."""
        self._send_rest()
        self._receive()
        if self._comm.one_rank_a_gpu and not self._watched:  # NCCL has made its connections by now
            self._watched = watch_connections() > 0
        return True

    def stepping(self) -> AbstractContextManager[None]:
        """The optimizer exchanges nothing by itself."""
        return nullcontext()

    def state_dict(self) -> dict[str, Tensor]:
        """Floats remember nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to take up."""


def _patience() -> timedelta:
    return timedelta(seconds=number(ENDED_AFTER, SECONDS_OF_PATIENCE) or _FOR_EVER)


def has_nccl() -> bool:
    """Whether ranks on GPUs talk through NCCL."""
    return bool(number(NCCL, 1)) and torch.cuda.is_available() and dist.is_nccl_available()


def _choose_interface(launched: Launcher) -> None:
    """Let Gloo listen on loopback where all ranks are on this host, else on the card towards the others.

    By itself it takes the address of this host's name, which on Debian is often one of loopback.
    """
    if os.environ.get(INTERFACE):
        return
    if launched.local_size == launched.size:
        os.environ[INTERFACE] = "lo"
        return
    meeting = launched.address[0] if launched.address else _OUTSIDE
    for address in (meeting, _OUTSIDE):
        found = route_interface(address) or "lo"
        if found != "lo":
            os.environ[INTERFACE] = found
            return
