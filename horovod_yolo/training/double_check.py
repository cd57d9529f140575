"""One slice of a step done a second time by another rank: a rank that computes wrongly is found in training.

Slices have the same bits on any rank of the same kind. So two ranks that have different ones for a slice
cannot both be right; a third says who is not. Where no third can, each does it once more: who then has
something else than before is wrong, and where both repeat theirs it cannot be told which of them. A rank that
lacks memory or an image for the slice is no judge, and is not named for that.

Nothing of the training changes by it. What is found ends the run before the step is made: what it had
computed before may be wrong as well, and its checkpoint is not made worse.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from horovod_yolo.core.errors import FaultyRankError
from horovod_yolo.core.slices import Slices
from horovod_yolo.core.types import Batch
from horovod_yolo.data.sampler import Stream, keyed_generator
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.training.schedule import Window

Digests = list[int] | None  # of a slice's gradients, a tensor each; None: this rank has not computed them


@dataclass(frozen=True)
class Machine:
    """What a rank computes on."""

    host: str
    kind: str  # of equal kinds equal bits are expected


def drawn(seed: int, step: int, batches: int, slices: int) -> tuple[int, int]:
    """The batch of a window and the slice that are looked at, the same on all ranks."""
    chance = keyed_generator(seed, Stream.CHECK, step)
    return int(chance.integers(batches)), int(chance.integers(slices))


class DoubleChecks:
    """Every so many steps one. *Collective.*

    Args:
        every: steps between two of them.
        seed: of the run.
        comm: the ranks.
        kind: of what this rank computes on.
        make: this rank's way to have one slice of a batch of an epoch, whoever's it is.
    """

    def __init__(
        self,
        every: int,
        seed: int,
        comm: Communicator,
        kind: str,
        make: Callable[[int, int, Slices], Batch],
    ) -> None:
        self._every, self._seed, self._comm, self._make = every, seed, comm, make
        self._machines = comm.allgather_object(Machine(socket.gethostname(), kind))

    def of(
        self, step: int, epoch: int, window: Window, scales: Sequence[float], slices: Slices
    ) -> DoubleCheck | None:
        """What is to be done twice in a step, from 1; None: nothing. *Collective.*

        Args:
            step: that is to be made.
            epoch: of it.
            window: its batches.
            scales: one for each of them.
            slices: this rank's.
        """
        if step % self._every:
            return None
        at, number = drawn(self._seed, step, window.batches, slices.count)
        shares = self._comm.allgather_object((slices.first, slices.last))
        owner = next(rank for rank, (first, last) in enumerate(shares) if first <= number < last)
        machines = self._machines
        only = Slices(slices.count, number, number + 1)
        like = [r for r, one in enumerate(machines) if r != owner and one.kind == machines[owner].kind]
        keyed_generator(self._seed, Stream.CHECK, step, 1).shuffle(like)
        return DoubleCheck(
            comm=self._comm,
            machines=machines,
            step=step,
            at=(at, number),
            scale=scales[at],
            ranks=(owner, *like),
            batch=lambda: self._make(epoch, window.first_batch + at, only),
        )


@dataclass(frozen=True, kw_only=True)
class DoubleCheck:
    """That of a step."""

    comm: Communicator
    machines: Sequence[Machine]  # by rank
    step: int
    at: tuple[int, int]  # batch of the window, and slice
    scale: float  # of the batch's images
    ranks: tuple[int, ...]  # who has the slice, then those that may do it again
    batch: Callable[[], Batch]  # the slice

    def require_same(
        self, tensors: Sequence[str], first: Callable[[], list[int]], again: Callable[[Batch], Digests]
    ) -> None:
        """Compare what two ranks have for the slice. *Collective.*

        Args:
            tensors: names of those that have gradients.
            first: what the slice's own rank has computed in the step.
            again: computes it; None where that was not possible.

        Raises:
            FaultyRankError: they differ; on all ranks alike.
        """
        owner, *others = self.ranks
        second = others[0] if others else owner
        mine = first() if self.comm.rank == owner else None
        theirs = again(self.batch()) if self.comm.rank == second else None
        told = self.comm.allgather_object((mine, theirs))
        one, other = told[owner][0], told[second][1]
        if one is None or other is None or one == other:
            return
        different = [name for name, a, b in zip(tensors, one, other, strict=True) if a != b]
        if not others:
            raise self._found(different, [owner], "done again, it has something else")
        for judge in others[1:]:
            third = self._done_again_by([judge], again)[judge]
            if third is not None:
                raise self._found(different, *self._by_majority(one, other, judge, third))
        more = self._done_again_by([owner, second], again)
        raise self._found(different, *self._by_repetition(one, other, more))

    def _done_again_by(self, ranks: Sequence[int], again: Callable[[Batch], Digests]) -> list[Digests]:
        """What these have for the slice, by rank. *Collective.*"""
        return self.comm.allgather_object(again(self.batch()) if self.comm.rank in ranks else None)

    def _by_majority(self, one: Digests, other: Digests, judge: int, third: Digests) -> tuple[list[int], str]:
        """Who is wrong, and why."""
        owner, second = self.ranks[:2]
        if third == one:
            return [second], f"ranks {owner} and {judge} have the same, and it another"
        if third == other:
            return [owner], f"ranks {second} and {judge} have the same, and it another"
        return [owner, second, judge], "each of the three has another"

    def _by_repetition(self, one: Digests, other: Digests, more: Sequence[Digests]) -> tuple[list[int], str]:
        """The same where no third rank can do it."""
        owner, second, *others = self.ranks
        pair = (owner, one), (second, other)
        wrong = [rank for rank, before in pair if more[rank] not in (None, before)]
        unable = [str(rank) for rank, _ in pair if more[rank] is None]
        if len(wrong) == 1:
            return wrong, "done again, it has something else than before"
        said = "neither repeats what it had" if wrong else "each repeats what it had"
        if unable:
            said = f"rank {' and rank '.join(unable)} cannot do it again"
        third = "no third rank can do it" if others else "there is no third rank of the same kind"
        return [owner, second], f"{said}, and {third}"

    def _found(self, tensors: Sequence[str], wrong: Sequence[int], why: str) -> FaultyRankError:
        batch, number = self.at
        who = " or ".join(f"rank {r} ({self.machines[r].host}, {self.machines[r].kind})" for r in wrong)
        last = tensors[-1]  # to which the backward pass comes first
        more = f" and of {len(tensors) - 1} more tensors" if len(tensors) > 1 else ""
        words = (
            f"{who} COMPUTES WRONGLY: in step {self.step}, slice {number} of batch {batch}, the gradient of "
            f"{last}{more} is not what it must be; {why}"
        )
        event: dict[str, Any] = {
            "step": self.step,
            "batch": batch,
            "slice": number,
            "tensors": list(tensors),
            "ranks": [{"rank": rank, **vars(self.machines[rank])} for rank in wrong],
            "words": words,
        }
        return FaultyRankError(words, event)
