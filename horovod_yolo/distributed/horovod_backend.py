"""Ranks that talk through Horovod: over MPI or Gloo on CPUs, NCCL on GPUs.

Small sums on CPUs do not wait for Horovod's queue (see `horovod_yolo.distributed.direct`): they go by MPI
itself, or over connections of their own beside Horovod's Gloo. All of them but batch norm's are announced in
the queue. So Horovod misses a rank that does not come to it, names it, and gives it up, as for its own sums.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.communicator import OF_BATCH_NORM, GradientExchange, Messages, Pending
from horovod_yolo.distributed.direct import (
    Combine,
    DirectSums,
    GoneError,
    Look,
    SmallSum,
    SocketSums,
    suits,
)
from horovod_yolo.distributed.gradient_groups import grouped
from horovod_yolo.distributed.horovod_settings import ENDED_AFTER, NAMED_AFTER, prepare
from horovod_yolo.distributed.launchers.launcher import Launcher
from horovod_yolo.distributed.local import Ready
from horovod_yolo.distributed.mpi_sums import MpiSums, UnfitError
from horovod_yolo.distributed.polling import pause
from horovod_yolo.process.interfaces import address_of, route_interface

log = logging.getLogger(__name__)
T = TypeVar("T")
SECONDS_BETWEEN_POLLS = 1e-4  # at first
INTERFACE, RENDEZVOUS = "HOROVOD_GLOO_IFACE", "HOROVOD_GLOO_RENDEZVOUS_ADDR"  # as horovodrun tells its ranks
MOST_BYTES_AT_ONCE = 1 << 28  # of objects, all ranks' together: MPI counts with C's int


def initialise(group: Any = None) -> None:
    """``hvd.init()`` as this trainer needs it, of all ranks or of MPI's ``group``; once done, nothing."""
    prepare()
    hvd.init(comm=group)


_open: list[DirectSums] = []


def leave() -> None:
    """The opposite of `initialise`. Ranks that wait for a small sum with this one learn of it."""
    while _open:
        _open.pop().close()
    hvd.shutdown()


class HorovodCommunicator:
    """A job started by ``horovodrun`` or ``mpirun``.

    Gradients travel in fixed groups; what Horovod fuses by itself depends on timing (see `gradient_groups`).

    Args:
        group: a communicator of MPI's, whose ranks are a job of their own; None for all ranks.
    """

    lost_errors: tuple[type[Exception], ...] = (HorovodInternalError,)
    wire_types: tuple[torch.dtype, ...] = (torch.float16,)

    def __init__(self, group: Any = None) -> None:
        initialise(group)
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        self.local_rank: int = hvd.local_rank()
        self.local_size: int = hvd.local_size()
        self.one_rank_a_gpu = bool(hvd.nccl_built())
        self.wait_s = 0.0
        self._announced: deque[int] = deque()  # handles of the last announcements of small sums
        self._announcements = 0
        self._said = False  # that this rank waits for long, for the small sum under way
        self._direct = _direct_sums(self.rank, self.size, self.local_size == self.size, self._look, group)

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
        """Count the time inside, where Horovod's queue is used, as waiting for other ranks."""
        start = time.perf_counter()
        try:
            if self._direct is not None:
                self._direct.settle()
            yield
        except GoneError as error:
            raise self._lost(error) from error
        finally:
            self.wait_s += time.perf_counter() - start

    @property
    def messages(self) -> Messages:
        """Sums in Horovod's queue, also small ones."""
        return _Queue(self)

    def allreduce_sum(self, tensor: Tensor, name: str) -> Pending:
        """Start summing a tensor over ranks. *Collective.*"""
        return self._allreduce(tensor, name, hvd.Sum, torch.add)

    def allreduce_max(self, tensor: Tensor, name: str) -> Pending:
        """Start looking for the largest value at each place. *Collective.*"""
        return self._allreduce(tensor, name, hvd.Max, torch.maximum)

    def _allreduce(self, tensor: Tensor, name: str, op: Any, combine: Combine) -> Pending:
        if self.size == 1 or self._direct is None or not suits(tensor):
            return self._in_queue(tensor, name, op)
        if not name.startswith(OF_BATCH_NORM):  # a rank that came to the sum before is there
            self._announce()
        with self.small():
            return _Small(self._direct.start(tensor, name, combine), self)

    def _in_queue(self, tensor: Tensor, name: str, op: Any) -> Pending:
        """Start an operation of Horovod's own. *Collective.*"""
        if self.size == 1:
            return Ready(tensor)
        return _Handle(hvd.allreduce_async(tensor, name=name, op=op), self)

    def _announce(self) -> None:
        """Tell Horovod's queue that this rank has come to a small sum. Two may be under way."""
        if len(self._announced) > 1:
            _result(self._announced.popleft())
        self._announcements += 1
        name = f"small sums {self._announcements % 2}"
        self._announced.append(hvd.allreduce_async(torch.zeros(1), name=name, op=hvd.Sum))

    @contextmanager
    def small(self) -> Iterator[None]:
        """Count the time inside, where a small sum is under way, as waiting for other ranks."""
        start, self._said = time.perf_counter(), False
        try:
            yield
        except (GoneError, HorovodInternalError) as error:
            raise self._lost(error) from error
        finally:
            self.wait_s += time.perf_counter() - start

    def _lost(self, error: Exception) -> HorovodInternalError:
        """Ends the connections for small sums: others wait for this rank there, and must not for ever."""
        if self._direct is not None:
            self._direct.close()
        return HorovodInternalError(str(error))

    def _look(self, waited_s: float, whom: str) -> None:
        """Of a rank that waits for a small sum: say so after long, and raise where others are given up.

        Horovod does both where the sum, or one before it, was announced and a rank has not come to it.
        """
        while self._announced and hvd.poll(self._announced[0]):
            hvd.synchronize(self._announced.popleft())
        if self._announced:
            return
        named, ended = float(os.environ[NAMED_AFTER]), float(os.environ[ENDED_AFTER])
        if 0 < ended < waited_s:
            raise GoneError(f"{whom} has not come to a sum for {waited_s:.0f} s")
        if 0 < named < waited_s and not self._said:
            self._said = True
            log.warning("late: %s; this one has waited for its part of a sum for %.0f s", whom, waited_s)

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
        leave()


def _direct_sums(rank: int, size: int, on_one_host: bool, look: Look, group: Any = None) -> DirectSums | None:
    """How small sums travel beside Horovod; None where they have to travel in its queue. *Collective.*"""

    def everyones(value: Any) -> list[Any]:
        return allgather_object(value, "direct")

    if size == 1:
        return None
    sums: DirectSums
    try:
        if hvd.mpi_enabled():
            sums = MpiSums.beside_horovod(rank, size, everyones, look, group)
        else:
            sums = SocketSums.connect(rank, size, _own_address(on_one_host), everyones, look)
    except (OSError, UnfitError) as error:
        if rank == 0:
            log.warning("small sums, as of --sync-bn, wait in Horovod's queue: %s", error)
        return None
    _open.append(sums)
    return sums


def _own_address(on_one_host: bool) -> str:
    """Of this host, where the ranks reach each other: on its interface for Horovod's Gloo."""
    interface = "lo" if on_one_host else os.environ.get(INTERFACE)
    if not interface:
        interface = route_interface(os.environ.get(RENDEZVOUS, "")) or "lo"
    return address_of(interface) or "127.0.0.1"


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
    so do many ranks that poll often.
    """
    start = time.perf_counter()
    while not hvd.poll(handle):
        pause(time.perf_counter() - start, SECONDS_BETWEEN_POLLS)


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


class _Queue:
    def __init__(self, comm: HorovodCommunicator) -> None:
        self._comm = comm

    def sum_in_place(self, tensor: Tensor, name: str) -> Pending:
        if self._comm.size == 1:
            return Ready(tensor)
        return _Handle(hvd.allreduce_async_(tensor, name=name, op=hvd.Sum), self._comm)


class _Small:
    def __init__(self, pending: SmallSum, comm: HorovodCommunicator) -> None:
        self._pending = pending
        self._comm = comm

    def wait(self) -> Tensor:
        with self._comm.small():
            return self._pending.wait()


class _HorovodExchange:
    def __init__(self, optimizer: Any, comm: HorovodCommunicator) -> None:
        self._optimizer = optimizer
        self._comm = comm

    def expect(self, slices: int, *, passes: int = 1, of_all: int | None = None) -> None:
        self._optimizer.set_backward_passes_per_step(slices * passes)

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

    def finish(self) -> bool:
        # What a GPU still computes is no wait for others.
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().synchronize()
        with self._comm.waiting():
            for handle, _ in self._optimizer._handles.values():
                if handle is not None:
                    _sleep_until_done(handle)
            self._optimizer.synchronize()
        return True

    def stepping(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self._optimizer.skip_synchronize()
        return context

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Floats remember nothing."""
