"""Ranks that talk through Horovod: over MPI or Gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import io
import os
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.communicator import GradientExchange, Pending
from horovod_yolo.distributed.gradient_groups import grouped
from horovod_yolo.distributed.launchers.launcher import Launcher
from horovod_yolo.distributed.local import Ready

T = TypeVar("T")
SECONDS_BETWEEN_POLLS = (1e-4, 5e-3)  # at first, and at most
POLLS_A_WAIT = 20  # a poll comes at most so late: the wait so far, divided by this
# What Horovod reads when it starts, unless the user has set it. It names a rank that is late for a call after
# the first and ends the job after the second, which has to outlast what one rank may do alone, as reading the
# labels of its part from a slow disk.
NAMED_AFTER, ENDED_AFTER = "HOROVOD_STALL_CHECK_TIME_SECONDS", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"
DEFAULTS = {NAMED_AFTER: "30", ENDED_AFTER: "600"}
MOST_BYTES_AT_ONCE = 1 << 28  # of objects, all ranks' together: MPI counts with C's int


def initialise() -> None:
    """``hvd.init()`` as this trainer needs it; where that is done already, nothing."""
    os.environ["HOROVOD_DISABLE_GROUP_FUSION"] = "1"  # see HorovodCommunicator
    for name, value in DEFAULTS.items():
        os.environ[name] = os.environ.get(name) or value  # Horovod takes an empty one for 0
    hvd.init()


class HorovodCommunicator:
    """A job started by ``horovodrun`` or ``mpirun``.

    Gradients travel in fixed groups; what Horovod fuses by itself depends on timing (see `gradient_groups`).
    """

    lost_errors: tuple[type[Exception], ...] = (HorovodInternalError,)
    wire_types: tuple[torch.dtype, ...] = (torch.float16,)

    def __init__(self) -> None:
        initialise()
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        self.local_rank: int = hvd.local_rank()
        self.local_size: int = hvd.local_size()
        self.one_rank_a_gpu = bool(hvd.nccl_built())
        self.wait_s = 0.0

    @classmethod
    def join(cls, launched: Launcher) -> HorovodCommunicator:
        """Find the other ranks of the job. *Collective.*

        Raises:
            UserError: Horovod finds fewer than were launched.
        """
        comm = cls()
        if comm.size != launched.size and not launched.restarts_ranks:
            raise UserError(
                f"launched as rank {launched.rank} of {launched.size}, but Horovod finds {comm.size} ranks",
                fix="its MPI is not the launcher's: use `horovod-yolo launch` or this environment's mpirun",
            )
        return comm

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for other ranks."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.wait_s += time.perf_counter() - start

    def allreduce_sum(self, tensor: Tensor, name: str) -> Pending:
        """Start summing a tensor over ranks. *Collective.*"""
        return self._allreduce(tensor, name, hvd.Sum)

    def allreduce_max(self, tensor: Tensor, name: str) -> Pending:
        """Start looking for the largest value at each place. *Collective.*"""
        return self._allreduce(tensor, name, hvd.Max)

    def _allreduce(self, tensor: Tensor, name: str, op: Any) -> Pending:
        if self.size == 1:
            return Ready(tensor)
        return _Handle(hvd.allreduce_async(tensor, name=name, op=op), self)

    def allgather_object(self, value: T) -> list[T]:
        """Everyone's value, by rank. *Collective.*"""
        with self.waiting():
            return allgather_object(value, "objects")

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value. *Collective.*"""
        with self.waiting():
            return broadcast_object(value, 0, "object")

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite everyone's tensors with rank 0's. *Collective.*"""
        with self.waiting():
            for handle in [hvd.broadcast_async_(tensors[name], 0, name=name) for name in sorted(tensors)]:
                _result(handle)

    def exchange_gradients(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        wire: torch.dtype | None,
        group_mb: float,
    ) -> tuple[Optimizer, GradientExchange]:
        """Wrap an optimizer in ``hvd.DistributedOptimizer``. *Collective.*

        ``op=Sum``: the loss divides by what all ranks have together, so the sum of the ranks'
        gradients is the gradient of the global batch.
        """
        named = list(named_parameters)
        wrapped = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=named,
            groups=grouped([parameter for _, parameter in named], group_mb * 2**20),
            compression=hvd.Compression.none if wire is None else hvd.Compression.fp16,
            op=hvd.Sum,
        )
        return wrapped, _HorovodExchange(wrapped, self)

    def close(self) -> None:
        """Leave the job in order."""
        hvd.shutdown()


def allgather_object(value: T, name: str) -> list[T]:
    """Everyone's value, by rank. *Collective.*

    The name is fixed: Horovod's own is that of the value's type, and ranks with a str and a None would wait
    for each other for ever.
    """
    mine = _pickled(value)
    lengths = _result(hvd.allgather_async(torch.tensor([len(mine)]), name=f"{name}.lengths")).tolist()
    everyone = [torch.empty(length, dtype=torch.uint8) for length in lengths]
    step = max(MOST_BYTES_AT_ONCE // len(lengths), 1)  # the ranks' pieces arrive as one
    for start in range(0, max(lengths), step):
        pieces = _result(hvd.allgather_async(mine[start : start + step], name=f"{name}.bytes"))
        places = [whole[start : start + step] for whole in everyone]
        for place, piece in zip(places, torch.split(pieces, [len(place) for place in places]), strict=True):
            place.copy_(piece)
    return [pickle.loads(whole.numpy().data) for whole in everyone]


def broadcast_object(value: T, root: int, name: str) -> T:
    """The value of rank ``root``. *Collective.*"""
    data = _pickled(value) if hvd.rank() == root else torch.empty(0, dtype=torch.uint8)
    length = int(_result(hvd.broadcast_async(torch.tensor([len(data)]), root, name=f"{name}.length")))
    if hvd.rank() != root:
        data = torch.empty(length, dtype=torch.uint8)
    for piece in torch.split(data, MOST_BYTES_AT_ONCE):
        _result(hvd.broadcast_async_(piece, root, name=f"{name}.bytes"))
    received: T = pickle.loads(data.numpy().data)
    return received


def _pickled(value: object) -> Tensor:
    content = io.BytesIO()
    pickle.dump(value, content)
    return torch.frombuffer(content.getbuffer(), dtype=torch.uint8)


def _sleep_until_done(handle: int) -> None:
    """Wait without using the core.

    ``hvd.synchronize`` spins, which starves Horovod's own thread and the other ranks where they share cores;
    so do many ranks that poll often. The longer the wait has been, the less a late poll adds to it.
    """
    shortest, longest = SECONDS_BETWEEN_POLLS
    start = time.perf_counter()
    while not hvd.poll(handle):
        waited = time.perf_counter() - start
        time.sleep(min(max(waited / POLLS_A_WAIT, shortest), longest))


def _result(handle: int) -> Tensor:
    """What an operation of Horovod gives, when it is done."""
    _sleep_until_done(handle)
    result: Tensor = hvd.synchronize(handle)
    return result


class _Handle:
    def __init__(self, handle: int, comm: HorovodCommunicator) -> None:
        self._handle = handle
        self._comm = comm

    def wait(self) -> Tensor:
        with self._comm.waiting():
            return _result(self._handle)


class _HorovodExchange:
    def __init__(self, optimizer: Any, comm: HorovodCommunicator) -> None:
        self._optimizer = optimizer
        self._comm = comm

    def expect(self, backward_passes: int) -> None:
        self._optimizer.set_backward_passes_per_step(backward_passes)

    def abandon(self) -> None:
        """Send zeros for the groups that have not left, as Horovod's hooks would.

        By itself it would send the gradients of such a group one by one, the other ranks theirs as a group.
        """
        handles, counts = self._optimizer._handles, self._optimizer._group_counts
        for group in [group for group in counts if group not in handles]:
            for parameter in group:
                parameter.grad = torch.zeros_like(parameter)
                handles.pop(parameter, None)
            handles[group] = self._optimizer._grouped_allreduce_grad_async(group)
            counts[group] = 0

    def finish(self) -> None:
        # What a GPU still computes is no wait for others.
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().synchronize()
        with self._comm.waiting():
            for handle, _ in self._optimizer._handles.values():
                if handle is not None:
                    _sleep_until_done(handle)
            self._optimizer.synchronize()

    def stepping(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self._optimizer.skip_synchronize()
        return context
