"""Turns and answers for the ranks of a world in one process, and what is said when no rank can go on."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class DeadlockError(AssertionError):
    """Ranks wait for a call that a rank which has returned never made."""


class MismatchError(AssertionError):
    """Ranks made different calls where all must make the same."""


class RankLostError(RuntimeError):
    """Another rank ended with an exception: `Communicator.lost_errors` of this world."""


@dataclass(frozen=True)
class Call:
    """What a rank asked of the others."""

    kind: str
    name: str = ""
    forms: tuple[str, ...] = ()  # shapes and types of what it gave

    def __str__(self) -> str:
        more = f" and {len(self.forms) - 3} more" * (len(self.forms) > 3)
        words = (self.kind, self.name and repr(self.name), ", ".join(self.forms[:3]))
        return " ".join(word for word in words if word) + more


@dataclass
class _Collective:
    """One call of all ranks, as far as they have made it."""

    calls: dict[int, Call] = field(default_factory=dict)
    given: dict[int, Any] = field(default_factory=dict)
    taken: int = 0  # by so many ranks


@dataclass
class _Rank:
    """A rank as the others see it."""

    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    calls: list[Call] = field(default_factory=list)
    waits_for: int | None = None  # number of the call
    left: bool = False
    error: BaseException | None = None
    result: Any = None


class Turns:
    """Gives the ranks their turns and their answers. Only the rank whose turn it is calls it."""

    def __init__(self, size: int) -> None:
        self.ranks = [_Rank() for _ in range(size)]
        self.over = threading.Event()
        self.broken: Exception | None = None  # and then nobody gets an answer any more
        self.parameters: dict[int, tuple[int, nn.Parameter]] = {}  # whose gradients are exchanged, by id
        self._collectives: list[_Collective] = []

    def post(self, rank: int, call: Call, given: Any) -> int:
        """Make a rank's next call; its number."""
        self._raise_if_broken()
        me = self.ranks[rank]
        number = len(me.calls)
        me.calls.append(call)
        if number == len(self._collectives):
            self._collectives.append(_Collective())
        collective = self._collectives[number]
        collective.calls[rank], collective.given[rank] = call, given
        if self._complete(number) and len(set(collective.calls.values())) > 1:
            self.broken = _mismatch(number, collective.calls)
        return number

    def wait(self, rank: int, number: int) -> list[Any]:
        """Let the others run until all have made the call; what they gave, by rank."""
        me = self.ranks[rank]
        me.waits_for = number
        if not self._may_run(rank):
            own_numbers = random_numbers()
            self.pass_on(rank)
            me.turn.acquire()
            set_random_numbers(own_numbers)
        me.waits_for = None
        self._raise_if_broken()
        collective = self._collectives[number]
        given = [collective.given[r] for r in range(len(self.ranks))]
        collective.taken += 1
        if collective.taken == len(self.ranks):
            collective.given.clear()
        return given

    def pass_on(self, rank: int) -> None:
        """Give the turn to the next rank that can use it."""
        size = len(self.ranks)
        order = [(rank + k) % size for k in range(1, size + 1)]
        able = [r for r in order if self._may_run(r)]
        if not able and not all(r.left for r in self.ranks):
            self.broken = self._stuck()
            able = [r for r in order if self._may_run(r)]
        if able:
            self.ranks[able[0]].turn.release()
        else:
            self.over.set()

    def give_up(self, error: Exception) -> None:
        """Release all ranks; for the test's own thread."""
        self.broken = error
        for rank in self.ranks:
            rank.turn.release()

    def _raise_if_broken(self) -> None:
        if self.broken is not None:
            raise type(self.broken)(*self.broken.args)  # a traceback for each rank

    def _complete(self, number: int) -> bool:
        return len(self._collectives[number].calls) == len(self.ranks)

    def _may_run(self, rank: int) -> bool:
        me = self.ranks[rank]
        return not me.left and (
            me.waits_for is None or self._complete(me.waits_for) or self.broken is not None
        )

    def _stuck(self) -> Exception:
        """All ranks have left or wait for a call which one that has left did not make."""
        kind = RankLostError if any(r.error is not None for r in self.ranks) else DeadlockError
        return kind(_by_value({number: self._state(r) for number, r in enumerate(self.ranks)}))

    def _state(self, rank: _Rank) -> str:
        if rank.waits_for is not None:
            return f"waiting in call {rank.waits_for + 1}, {rank.calls[rank.waits_for]}"
        after = f"after {len(rank.calls)} call{'s' if len(rank.calls) != 1 else ''}"
        if rank.error is None:
            return f"returned {after}"
        return f"ended {after} with {type(rank.error).__name__}: {rank.error}"


def _mismatch(number: int, calls: Mapping[int, Call]) -> MismatchError:
    """Of two long calls of one kind what they have in common is left out."""
    common = set.intersection(*(set(call.forms) for call in calls.values()))
    shown = {
        rank: replace(call, forms=tuple(form for form in call.forms if form not in common))
        for rank, call in calls.items()
    }
    distinct = set(shown.values())
    return MismatchError(f"call {number + 1} differs: {_by_value(shown if len(distinct) > 1 else calls)}")


def _by_value(of_ranks: Mapping[int, object]) -> str:
    """One phrase for all ranks of which the same holds."""
    ranks = defaultdict(list)
    for rank, value in sorted(of_ranks.items()):
        ranks[str(value)].append(str(rank))
    return "; ".join(f"rank{'s' * (len(who) > 1)} {', '.join(who)}: {what}" for what, who in ranks.items())


def random_numbers() -> tuple[Tensor, Any, Any]:
    """The state of the process's three generators."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_random_numbers(state: tuple[Tensor, Any, Any]) -> None:
    """The inverse of `random_numbers`."""
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])


def seed_random_numbers(rank: int) -> None:
    """As a rank has them at its start: unlike those of the others, the same in every world."""
    torch.manual_seed(1000 + rank)
    np.random.seed(1000 + rank)
    random.seed(1000 + rank)
