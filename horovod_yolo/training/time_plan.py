"""``--time``: as many epochs as fit into the hours that were given."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any

from horovod_yolo.distributed.communicator import Communicator

log = logging.getLogger(__name__)
HOUR_S = 3600.0
_NOT_KEPT = ("since", "repeated")
RECENT = 5  # epochs whose times say how long one takes


@dataclass
class TimePlan:
    """How many epochs a run has, and the time that it has used.

    After each epoch rank 0's clock decides for all ranks. What was decided is part of the run's state, and so
    is the time: a resumed run repeats the one and goes on counting the other. Time counts from the first
    step, with validation and commits; not while no rank trains, nor for steps that a lost rank took along.

    Attributes:
        epochs: in all; until the first is over, a guess.
        after: epochs after which this was decided.
        used_s: of rank 0, so far.
        epoch_s: of it, in the epoch under way.
        recent: seconds that each of the last epochs took.
        decisions: epochs that were over, and how many there were to be in all, where that changed.
        repeated: the state of a later plan of this run, whose decisions come again in place of the clock's.
    """

    epochs: int
    limit_s: float
    after: int = 0
    used_s: float = 0.0
    epoch_s: float = 0.0
    recent: list[float] = field(default_factory=list)
    decisions: list[list[int]] = field(default_factory=list)
    repeated: dict[str, Any] | None = None
    since: float | None = field(default=None, compare=False)  # when the clock was read last; None: it stands

    @classmethod
    def of(cls, hours: float, epochs: int) -> TimePlan | None:
        """That of a new run; None without ``--time``."""
        return cls(epochs, hours * HOUR_S) if hours else None

    def begin(self) -> None:
        """Let the clock run."""
        self.since = _now()
        if self.after:
            log.info("--time: %s of %s are used", _duration(self.used_s), _duration(self.limit_s))
            return
        log.info(
            "--time: as many epochs as fit into %s; %d are a guess until the first is over. "
            "Results then depend on how fast the machines are",
            *(_duration(self.limit_s), self.epochs),
        )

    def decide(self, over: int, comm: Communicator) -> bool:
        """Say anew how many epochs there are, after so many of them. *Collective.*

        There are fewer as soon as they do not fit. There are more where two or more would fit beside: one
        epoch comes and goes with the noise of a clock, and the schedule with it.

        Returns:
            Whether there are others than before.
        """
        if self.after == over:  # before a stop
            return False
        before = self.epochs
        if comm.rank == 0:
            self._decide(over)
        self.load_state_dict(comm.broadcast_object(self.state_dict()))
        if self.epochs != before:
            rest = "the time is over" if self.epochs == over else f"{_duration(median(self.recent))} each"
            log.info("--time: after %d epochs it is %d in all (%s)", over, self.epochs, rest)
        return self.epochs != before

    def _decide(self, over: int) -> None:
        self._read_clock()
        self.recent = [*self.recent, self.epoch_s][-RECENT:]
        left_s, each_s = max(self.limit_s - self.used_s, 0.0), max(median(self.recent), 1e-3)
        fit = over + math.floor(left_s / each_s)
        first, self.epoch_s, self.after = self.after == 0, 0.0, over
        if self.repeated is not None and over <= self.repeated["after"]:
            known = [epochs for after, epochs in self.repeated["decisions"] if after <= over]
            self.epochs = known[-1] if known else self.epochs
        elif first or fit < self.epochs or fit > self.epochs + 1:
            self.epochs = fit
            self.decisions.append([over, fit])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: plain builtins, the time up to now."""
        self._read_clock()
        return {name: value for name, value in asdict(self).items() if name not in _NOT_KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; the clock runs on."""
        for each in fields(self):
            if each.name in state:
                setattr(self, each.name, state[each.name])

    def results(self) -> dict[str, Any]:
        """For ``results.json``."""
        return {"time_used_s": self.used_s, "time_limit_s": self.limit_s, "epochs_decided": self.decisions}

    def _read_clock(self) -> None:
        if self.since is not None:
            now = _now()
            self.used_s += now - self.since
            self.epoch_s += now - self.since
            self.since = now


def _now() -> float:
    return time.monotonic()


def _duration(seconds: float) -> str:
    """For people."""
    for unit, size in (("h", HOUR_S), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
