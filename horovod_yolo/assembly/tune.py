"""A search: one trial after the other, each a run in a folder of its own, on the ranks that are here."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Literal

from horovod_yolo.assembly.owner import Owner
from horovod_yolo.assembly.run import begin_run, run_in_folder
from horovod_yolo.assembly.search import Search
from horovod_yolo.assembly.train import train
from horovod_yolo.core.errors import NonFiniteError, PrunedError, StoppedError, UserError
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.tune.outcome import Outcome, outcome_of, write_outcome
from horovod_yolo.tune.study import Claimed, Ending

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 2.0  # at trials of others: one may be lost, and is to be repeated


@dataclass(frozen=True)
class Turn:
    """What the ranks do next.

    Attributes:
        number: of the trial.
        folder: name of its run folder.
        params: the hyperparameters that were drawn.
        pruned: whether it is over already: it fell behind just before it was lost.
        repeated: whether a run may be there, to go on with.
    """

    number: int
    folder: str
    params: dict[str, float]
    pruned: bool
    repeated: bool


class _Desk:
    """What rank 0 does with the journal, for all ranks. Its public methods are *collective*.

    Raises:
        UserError: on all ranks: Optuna is missing, or the folder cannot be written to.
    """

    def __init__(self, search: Search, comm: Communicator) -> None:
        self._search, self._comm = search, comm
        self._claimed: Claimed | None = None
        together(comm, self._open)

    def _open(self) -> None:
        if self._comm.rank == 0:
            self._study = self._search.study()
            self._owner = Owner(self._search.folder)

    def next(self) -> Turn | Literal["wait", "over"]:
        """The next trial; or whether to wait for those that others have."""
        return on_rank_0(self._comm, self._next)

    def _next(self) -> Turn | Literal["wait", "over"]:
        running = self._study.requeue_lost(self._owner.is_lost)
        claimed = self._claimed = self._study.claim(self._owner.name)
        if claimed is None:
            return "wait" if running else "over"
        drawn = ", ".join(f"{name} {value:.4g}" for name, value in claimed.params.items())
        log.info("trial %d: %s", claimed.number, drawn)
        return Turn(claimed.number, claimed.folder, claimed.params, claimed.pruned, claimed.repeated)

    def judge(self, epoch: int, score: float) -> bool:
        """Whether the trial is to end after this epoch."""
        claimed = self._claimed  # on rank 0
        return self._comm.broadcast_object(claimed is not None and claimed.judge(epoch, score))

    def end(self, ending: Ending) -> None:
        """Note how the trial has ended."""
        on_rank_0(self._comm, lambda: self._end(ending))

    def _end(self, ending: Ending) -> None:
        claimed = self._claimed
        assert claimed is not None
        self._study.end(claimed, ending)
        best = self._outcome()[0].best
        value = "no score" if claimed.value is None else f"{claimed.value:.4f}"
        so_far = f"; best so far {best.value:.4f}, of trial {best.number}" if best else ""
        log.info("trial %d %s: %s%s", claimed.number, ending, value, so_far)

    def outcome(self) -> tuple[Outcome, bool]:
        """What is known by now, which is written, too; and whether the last trial was this job's."""
        return on_rank_0(self._comm, self._outcome)

    def _outcome(self) -> tuple[Outcome, bool]:
        outcome = outcome_of(self._search.folder, self._study.trials(), self._search.flags)
        write_outcome(outcome)
        return outcome, self._study.last_owner() == self._owner.name

    def leave(self) -> None:
        """Let others know that this job is no more at the search. Of rank 0."""
        if self._comm.rank == 0:
            self._owner.release()


def tune(
    search: Search, comm: Communicator, stop: StopRequest, *, shown: bool = True
) -> tuple[Outcome, bool]:
    """Do trials until all are done, also those that others have lost. *Collective.*

    Args:
        search: to take part in.
        comm: the ranks of each trial.
        stop: a request to stop.
        shown: whether rank 0 shows how a trial gets on.

    Returns:
        The outcome, and whether this job ended the last trial, and so is the one to tell of it.

    Raises:
        UserError: a mistake in the settings or the data, on all ranks alike.
        StoppedError: ``stop`` was asked for; the trial has its checkpoint.
    """
    desk = _Desk(search, comm)
    words = f"between trials; go on with horovod-yolo tune --resume {search.folder}"
    try:
        while True:
            stop.alone_from_here(words)
            turn = desk.next()
            if turn == "over":
                return desk.outcome()
            if isinstance(turn, Turn):
                ending: Ending = "pruned" if turn.pruned else _trial(search, turn, comm, stop, desk, shown)
                desk.end(ending)
            else:
                time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        desk.leave()


def _trial(
    search: Search, turn: Turn, comm: Communicator, stop: StopRequest, desk: _Desk, shown: bool
) -> Ending:
    """Train with what was drawn, or go on with that. *Collective.*"""
    given = {"noplots": True, **search.flags, "hyp": {**search.flags["hyp"], **turn.params}}
    if turn.repeated:
        run = run_in_folder(search.folder / turn.folder, given, comm)
    else:
        place = {"project": str(search.folder), "name": turn.folder, "exist_ok": True}
        run = begin_run({**given, **place}, comm)
    try:
        results = train(replace(run, judge=desk.judge, shown=shown), comm, stop)
    except PrunedError:
        return "pruned"
    except NonFiniteError as error:
        if comm.rank == 0:
            log.warning("trial %d diverged: %s", turn.number, error)
        return "diverged"
    except StoppedError as error:
        words = f"in trial {turn.number}, {error}; the search: horovod-yolo tune --resume {search.folder}"
        raise StoppedError(words, saved=error.saved, request=error.request) from None
    if not results["metrics"]:
        fix = "name images of val: in it"
        raise UserError(
            "nothing is validated, so no trial is better than another", where=run.config.data, fix=fix
        )
    return "done"
