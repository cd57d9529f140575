"""Several ranks in one process: each a thread with a `Communicator` of its own, with real sums between them.

    def job(comm: Communicator) -> float:
        model = tiny_detector()  # inside, so that every rank has its own
        ...
        return float(comm.allreduce_sum(loss, "loss").wait())

    losses = run_world(4, job)  # what each rank returned

One rank runs at a time, from one wait to the next, always in the same order. So two runs are equal to the
bit, nothing needs a lock, and a rank that waits for what never comes is seen at once instead of hanging.

torch's default generator, numpy's and `random`'s are one for the whole process. Here each rank has its own,
as in real life: they are exchanged whenever another rank runs, start differently on each rank (code that
counts on a seed it did not set gives different results on them), and are the test's again afterwards. What
else is the process's stays shared: ``os.environ``, the working folder, torch's default dtype and its
deterministic mode, warnings, loggers (``%(threadName)s`` is "rank N"). Signals reach the main thread only,
which is no rank.

Every call on every rank must be the same in kind, name, shape and type, in the same order. What the ranks'
real network refuses is refused here too: bfloat16, tensors with gaps, a name that is under way already.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_yolo.distributed.communicator import GradientExchange, Messages, Pending
from tests.helpers.world_gradients import GradientSums
from tests.helpers.world_turns import (
    Call,
    DeadlockError,
    MismatchError,
    RankLostError,
    Turns,
    random_numbers,
    seed_random_numbers,
    set_random_numbers,
)

__all__ = [
    "DeadlockError",
    "MismatchError",
    "RankLostError",
    "WorldCommunicator",
    "run_world",
    "world_outcomes",
]

T = TypeVar("T")


class WorldCommunicator:
    """One rank of a world in one process. ``calls`` is the order of what it asked of the others."""

    def __init__(self, turns: Turns, rank: int, hosts: Sequence[int]) -> None:
        self.rank = rank
        self.size = len(turns.ranks)
        first = 0
        for ranks_here in hosts:
            if rank < first + ranks_here:
                break
            first += ranks_here
        self.local_rank, self.local_size = rank - first, ranks_here
        self.one_rank_a_gpu = False
        self.wait_s = 0.0
        self.lost_errors: tuple[type[Exception], ...] = (RankLostError,)
        self.wire_types = (torch.float16, torch.bfloat16)
        self.calls = turns.ranks[rank].calls
        self._turns = turns
        self._under_way: set[str] = set()

    @property
    def messages(self) -> Messages:
        """All sums travel alike."""
        return self

    def sum_in_place(self, tensor: Tensor, name: str) -> Pending:
        """The same in the tensor's own place."""
        return _InPlace(self.allreduce_sum(tensor, name), tensor)

    def allreduce_sum(self, tensor: Tensor, name: str) -> Pending:
        """Start summing over ranks, first to last, in the tensor's own type."""
        return _Reduction(self, "allreduce_sum", tensor, name, torch.add)

    def allreduce_max(self, tensor: Tensor, name: str) -> Pending:
        """Start looking for the largest of the ranks' values."""
        return _Reduction(self, "allreduce_max", tensor, name, torch.maximum)

    def allgather_object(self, value: T) -> list[T]:
        """Everyone's value, by rank; copies, as from another process."""
        return [pickle.loads(data) for data in self._exchange(Call("allgather_object"), pickle.dumps(value))]

    def broadcast_object(self, value: T) -> T:
        """A copy of rank 0's value."""
        data = pickle.dumps(value) if self.rank == 0 else None
        received: T = pickle.loads(self._exchange(Call("broadcast_object"), data)[0])
        return received

    @torch.no_grad()
    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite everyone's tensors with rank 0's."""
        forms = [f"{name} {form_of(tensors[name])}" for name in sorted(tensors)]
        mine = {name: tensor.clone() for name, tensor in tensors.items()} if self.rank == 0 else None
        theirs = self._exchange(Call("broadcast_tensors", forms=tuple(forms)), mine)[0]
        for name, tensor in tensors.items():
            tensor.copy_(theirs[name])

    def exchange_gradients(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        wire: torch.dtype | None,
        group_mb: float,
    ) -> tuple[Optimizer, GradientExchange]:
        """Sum the gradients over the ranks' models, as `hvd.DistributedOptimizer` does it."""
        trained = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
        for name, parameter in trained.items():
            owner, _ = self._turns.parameters.setdefault(id(parameter), (self.rank, parameter))
            assert owner == self.rank, f"ranks {owner} and {self.rank} share parameter {name!r}"
        forms = (f"wire={wire}", f"group_mb={group_mb}", *trained)
        self._exchange(Call("exchange_gradients", forms=forms), None)

        def everyones(mine: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
            forms = [f"{name} {form_of(gradient)}" for name, gradient in mine.items()]
            return self._exchange(Call("finish", forms=tuple(forms)), mine)

        return optimizer, GradientSums(optimizer, trained, wire, everyones)

    def close(self) -> None:
        """Nothing to leave."""

    def _exchange(self, call: Call, given: Any) -> list[Any]:
        return self._wait(self._turns.post(self.rank, call, given))

    def _wait(self, number: int) -> list[Any]:
        start = time.perf_counter()
        try:
            return self._turns.wait(self.rank, number)
        finally:
            self.wait_s += time.perf_counter() - start


class _Reduction:
    """A sum or a maximum on its way."""

    def __init__(
        self,
        comm: WorldCommunicator,
        kind: str,
        tensor: Tensor,
        name: str,
        add: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        if name in comm._under_way:
            raise ValueError(f"rank {comm.rank}: a call named {name!r} is under way already")
        comm._under_way.add(name)
        self._comm, self._name, self._add = comm, name, add
        self._tensor, self._version = tensor, tensor._version
        self._result: Tensor | None = None
        self._number = comm._turns.post(
            comm.rank, Call(kind, name, (form_of(tensor),)), tensor.detach().clone()
        )

    @torch.no_grad()
    def wait(self) -> Tensor:
        """The same on every rank, each with a tensor of its own."""
        if self._result is None:
            first, *others = self._comm._wait(self._number)
            assert self._tensor._version == self._version, f"{self._name!r} was changed while under way"
            self._comm._under_way.remove(self._name)
            self._result = first.clone()
            for other in others:
                self._result = self._add(self._result, other)
        return self._result


class _InPlace:
    """A sum whose result takes the place of what was added."""

    def __init__(self, pending: Pending, tensor: Tensor) -> None:
        self._pending, self._tensor = pending, tensor

    @torch.no_grad()
    def wait(self) -> Tensor:
        """The tensor that was given."""
        return self._tensor.copy_(self._pending.wait())


def run_world(size: int, function: Callable[[WorldCommunicator], T], hosts: Sequence[int] = ()) -> list[T]:
    """Run ``function`` on every rank of a world; what each returned, by rank.

    Args:
        size: number of ranks.
        function: gets its rank's communicator. Ranks share what it closes over: make models inside.
        hosts: ranks on each host; all on one where not given.

    Raises:
        BaseException: the first rank's own exception, rather than a `RankLostError` that followed from it.
        DeadlockError: ranks waited for one that had returned; says who waits for what.
        MismatchError: the ranks made different calls; says which.
    """
    outcomes = world_outcomes(size, function, hosts)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, RankLostError)):
        raise error
    return outcomes


def world_outcomes(
    size: int, function: Callable[[WorldCommunicator], Any], hosts: Sequence[int] = ()
) -> list[Any]:
    """As `run_world`, with the exception of each rank that raised one in place of its result."""
    assert sum(hosts or (size,)) == size
    turns = Turns(size)

    def live(number: int) -> None:
        me = turns.ranks[number]
        me.turn.acquire()
        seed_random_numbers(number)
        try:
            me.result = function(WorldCommunicator(turns, number, hosts or (size,)))
        except BaseException as error:  # noqa: BLE001  reaches the test
            me.error = me.result = error
        me.left = True
        turns.pass_on(number)

    threads = [threading.Thread(target=live, args=(r,), name=f"rank {r}", daemon=True) for r in range(size)]
    tests_numbers = random_numbers()
    for thread in threads:
        thread.start()
    try:
        turns.ranks[0].turn.release()
        turns.over.wait()
    except BaseException:  # the test is interrupted, as by its time-out
        turns.give_up(RankLostError("the test was interrupted"))
        raise
    finally:
        for thread in threads:
            thread.join(10)
        set_random_numbers(tests_numbers)
    return [rank.result for rank in turns.ranks]


def form_of(tensor: Tensor) -> str:
    """Shape and type. Refuses what Horovod's torch binding refuses."""
    if tensor.dtype == torch.bfloat16:
        raise ValueError("Horovod sends no bfloat16")
    if not tensor.is_contiguous():
        raise ValueError("Tensor is required to be contiguous.")
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
