"""Sums over the ranks that a rank can take up again where it had to leave off.

The ranks make the same sums in the same order, whatever their shares: a rank without images adds zeros. So
one that runs out of memory in the middle of a batch can go through it once more without images. The sums that
it made are not made a second time; to the others it is as if it had gone on.
"""

from __future__ import annotations

from torch import Tensor

from horovod_yolo.distributed.communicator import Pending, Sums
from horovod_yolo.distributed.local import Ready


class RejoiningSums:
    """The sums of one batch, counted."""

    def __init__(self, comm: Sums) -> None:
        self._comm = comm
        self._made = self._skipped = 0
        self._under_way: list[_Waiting] = []

    def begin(self) -> None:
        """A new batch begins, on all ranks."""
        self._made = self._skipped = 0
        self._under_way.clear()

    def begin_again(self) -> None:
        """Go through the batch once more: sums made so far are passed over, and give this rank's own.

        *Collective* as far as sums are still under way.
        """
        for sums in self._under_way:
            sums.wait()
        self._under_way.clear()
        self._skipped, self._made = self._made, 0

    def allreduce_sum(self, tensor: Tensor, name: str) -> Pending:
        """Start summing a tensor over ranks. *Collective*, unless it is passed over."""
        if self._made < self._skipped:
            self._made += 1
            return Ready(tensor)
        pending = _Waiting(self._comm.allreduce_sum(tensor, name), self._under_way)
        self._made += 1
        return pending


class _Waiting:
    """A sum on its way, in the list of those that nobody has waited for."""

    def __init__(self, pending: Pending, under_way: list[_Waiting]) -> None:
        self._pending = pending
        self._under_way = under_way
        under_way.append(self)

    def wait(self) -> Tensor:
        if self in self._under_way:
            self._under_way.remove(self)
        return self._pending.wait()
