"""A search as Optuna keeps it: a journal in the study's folder, which several jobs may write at once.

Every trial is there from the beginning, waiting. So a job takes one without asking the others, and there are
never more of them than were wanted. The draws of a trial depend on the seed, on its number and on what is
known by then: with one trial at a time the same search gives the same trials, also after a break.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from horovod_yolo.core.errors import UserError
from horovod_yolo.tune.space import Range, Space

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
JOURNAL, NAME = "journal.log", "search"
SECONDS_TO_NAME_OWNER = 60.0  # that a job has between taking a trial and saying so
LEAST_TO_COMPARE = 5  # trials that came to their end: the median of fewer is an accident of what was drawn
_OWNER, _FOLDER, _REPEATS, _END = "owner", "folder", "repeats", "end"
Ending = Literal["done", "pruned", "diverged"]


@dataclass(frozen=True)
class Trial:
    """A trial of a search, as the journal has it.

    Attributes:
        number: from 0.
        state: ``done``, ``pruned``, ``diverged``, ``lost``, ``running`` or ``waiting``.
        params: what was drawn.
        values: the score after each epoch, by its number from 1.
        value: the best of them; None for none.
        folder: name of its run folder in the study's.
        repeats: number of the lost trial whose work this one goes on with; None for none.
        seconds: from its start to its end, so far.
    """

    number: int
    state: str
    params: Mapping[str, float]
    values: Mapping[int, float]
    value: float | None
    folder: str
    repeats: int | None
    seconds: float | None


class Claimed:
    """A trial that this job has taken."""

    def __init__(self, trial: optuna.trial.Trial, frozen: optuna.trial.FrozenTrial, space: Space) -> None:
        self._trial = trial
        self._values = dict(frozen.user_attrs.get("values", {}))
        self.number = frozen.number
        self.repeated = _REPEATS in frozen.user_attrs
        self.folder: str = frozen.user_attrs.get(_FOLDER, folder_of(frozen.number))
        self.params = {name: _drawn(trial, name, found) for name, found in space.items()}
        for epoch, value in self._values.items():
            trial.report(value, int(epoch))

    @property
    def value(self) -> float | None:
        """The best score so far."""
        return max(self._values.values(), default=None)

    @property
    def pruned(self) -> bool:
        """Whether what is known by now is below the median of the other trials."""
        return bool(self._values and self._trial.should_prune())

    def judge(self, epoch: int, score: float) -> bool:
        """Note the score after an epoch, whose numbers begin with 1; whether the trial is to end here."""
        if str(epoch) not in self._values:  # a run that goes on may come to an epoch that is noted already
            self._values[str(epoch)] = score
            self._trial.report(score, epoch)
        return self.pruned


class Study:
    """One search.

    Args:
        folder: of the study.
        space: what is searched.
        seed: of its draws.
        wanted: trials, when the search began.
        warmup_epochs: in which no trial is pruned; None: none is ever.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(
        self, folder: Path, space: Space, *, seed: int, wanted: int, warmup_epochs: int | None
    ) -> None:
        self._folder, self._space, self._seed = folder, space, seed
        self._drawn_blindly = max(1, min(10, wanted // 3))
        self._warmup_epochs = warmup_epochs
        self._optuna = _package()

    @cached_property
    def _storage(self) -> optuna.storages.JournalStorage:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        path = self._folder / JOURNAL
        lock = JournalFileOpenLock(str(path))  # which works over NFS, as fcntl's may not
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))

    @property
    def _id(self) -> int:
        return self._storage.get_study_id_from_name(NAME)

    def begin(self, first: Mapping[str, float], wanted: int) -> None:
        """Make the journal, with ``wanted`` trials, of which one has the values that are the ``first``."""
        optuna = self._optuna
        study = optuna.create_study(storage=self._storage, study_name=NAME, direction="maximize")
        if all(first[name] in found for name, found in self._space.items()):
            study.enqueue_trial({name: first[name] for name in self._space})
        self.want(wanted)

    def want(self, wanted: int) -> None:
        """Let there be so many trials at the end; those that are there already stay."""
        study = self._optuna.load_study(storage=self._storage, study_name=NAME)
        there = sum(trial.state.name != "FAIL" for trial in study.get_trials(deepcopy=False))
        for _ in range(wanted - there):
            study.enqueue_trial({})

    def claim(self, owner: str) -> Claimed | None:
        """Take the next trial, one that was lost first; None where none waits."""
        optuna = self._optuna
        waiting = (optuna.trial.TrialState.WAITING,)
        found_waiting = self._storage.get_all_trials(self._id, deepcopy=False, states=waiting)
        for found in sorted(
            found_waiting, key=lambda trial: (_REPEATS not in trial.user_attrs, trial.number)
        ):
            if self._storage.set_trial_state_values(found._trial_id, optuna.trial.TrialState.RUNNING):
                self._storage.set_trial_user_attr(found._trial_id, _OWNER, owner)
                drawn = np.random.SeedSequence([self._seed, found.number]).generate_state(1)
                sampler = optuna.samplers.TPESampler(
                    seed=int(drawn[0]), n_startup_trials=self._drawn_blindly, constant_liar=True
                )
                study = optuna.load_study(
                    storage=self._storage, study_name=NAME, sampler=sampler, pruner=self._pruner()
                )
                return Claimed(optuna.trial.Trial(study, found._trial_id), found, self._space)
        return None

    def _pruner(self) -> optuna.pruners.BasePruner:
        pruners = self._optuna.pruners
        pruner: optuna.pruners.BasePruner = pruners.NopPruner()
        if self._warmup_epochs is not None:
            # Values of an epoch count only where enough trials have them: with --patience some end sooner.
            pruner = pruners.MedianPruner(
                n_startup_trials=max(self._drawn_blindly, LEAST_TO_COMPARE),
                n_warmup_steps=self._warmup_epochs + 1,
                n_min_trials=LEAST_TO_COMPARE,
            )
        return pruner

    def end(self, claimed: Claimed, ending: Ending) -> None:
        """Note how a trial of this job has ended. What diverged counts as pruned: it is to be avoided."""
        state = self._optuna.trial.TrialState
        number = claimed._trial._trial_id
        self._storage.set_trial_user_attr(number, _END, ending)
        done = ending == "done" and claimed.value is not None
        values = [claimed.value] if done and claimed.value is not None else None
        self._storage.set_trial_state_values(number, state.COMPLETE if done else state.PRUNED, values)

    def requeue_lost(self, is_lost: Callable[[str], bool]) -> int:
        """Let running trials whose owner is gone wait again, with the same values; how many still run.

        Args:
            is_lost: whether the owner of this name is gone.
        """
        optuna = self._optuna
        running = self._storage.get_all_trials(
            self._id, deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)
        )
        lost = [trial for trial in running if _is_lost(trial, is_lost)]
        for trial in lost:
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another job has seen it, too
                self._storage.set_trial_user_attr(trial._trial_id, _END, "lost")
                self._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
                self._repeat(trial)
        return len(running) - len(lost)

    def _repeat(self, trial: optuna.trial.FrozenTrial) -> None:
        study = self._optuna.load_study(storage=self._storage, study_name=NAME)
        folder = trial.user_attrs.get(_FOLDER, folder_of(trial.number))
        values = {str(epoch): value for epoch, value in trial.intermediate_values.items()}
        attributes = {_FOLDER: folder, _REPEATS: trial.number, "values": values}
        fixed = trial.params or trial.system_attrs.get("fixed_params", {})
        study.enqueue_trial(fixed, user_attrs=attributes)
        log.warning("trial %d was lost with the ranks that had it: it is queued again", trial.number)

    def trials(self) -> list[Trial]:
        """All of them, by number."""
        return [_as_trial(found) for found in self._storage.get_all_trials(self._id, deepcopy=False)]

    def last_owner(self) -> str:
        """Who has ended the trial that ended last; empty for none."""
        ended = [t for t in self._storage.get_all_trials(self._id, deepcopy=False) if t.datetime_complete]
        last = max(ended, key=lambda trial: trial.datetime_complete or datetime.min, default=None)
        return str(last.user_attrs.get(_OWNER, "")) if last else ""


def folder_of(number: int) -> str:
    """Name of a trial's run folder."""
    return f"trial_{number:04d}"


def best_of(trials: list[Trial]) -> Trial | None:
    """The trial with the highest value of those that came to their end; of equals the first."""
    done = [trial for trial in trials if trial.state == "done" and trial.value is not None]
    return max(done, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def _package() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            f"horovod-yolo tune needs Optuna ({error})", fix="pip install 'horovod_yolo[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _mend(path: Path) -> None:
    """Cut off a line that a full disk or a power cut has left without its end: nobody could read on."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _drawn(trial: optuna.trial.Trial, name: str, found: Range) -> float:
    if found.choices:
        return float(trial.suggest_categorical(name, found.choices))
    return trial.suggest_float(name, found.low, found.high, log=found.log)


def _is_lost(trial: optuna.trial.FrozenTrial, is_lost: Callable[[str], bool]) -> bool:
    owner = trial.user_attrs.get(_OWNER)
    if owner is not None:
        return is_lost(str(owner))
    began = trial.datetime_start
    return began is None or (datetime.now() - began).total_seconds() > SECONDS_TO_NAME_OWNER


def _as_trial(found: optuna.trial.FrozenTrial) -> Trial:
    states = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "lost", "RUNNING": "running"}
    state = str(found.user_attrs.get(_END, states.get(found.state.name, "waiting")))
    values = dict(found.intermediate_values)
    return Trial(
        number=found.number,
        state=state if found.state.is_finished() else states.get(found.state.name, "waiting"),
        params={name: float(value) for name, value in found.params.items()},
        values=values,
        value=max(values.values(), default=None),
        folder=found.user_attrs.get(_FOLDER, folder_of(found.number)),
        repeats=found.user_attrs.get(_REPEATS),
        seconds=found.duration.total_seconds() if found.duration else None,
    )
