"""What a search has found: a table of its trials, the best hyperparameters as a file, and how to use them."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from horovod_yolo.config.keywords import argument_words
from horovod_yolo.config.load import train_parser
from horovod_yolo.core.results import TrialResults, TuneResults
from horovod_yolo.io.atomic import replacing
from horovod_yolo.tune.study import Trial, best_of

TABLE, BEST = "trials.csv", "best.yaml"
_NOT_OF_TRAINING = ("hyp", "project", "name", "exist_ok", "noplots", "seed", "np", "hosts")


@dataclass(frozen=True)
class Outcome:
    """A search as it stands.

    Attributes:
        folder: of the search.
        trials: all of them, by number.
        best: the one with the highest value; None as long as none is done.
        hyp: all hyperparameters of the best one; empty for none.
        command: that trains with them.
    """

    folder: Path
    trials: Sequence[Trial]
    best: Trial | None
    hyp: Mapping[str, float]
    command: str

    def lines(self) -> list[str]:
        """For people."""
        states = [trial.state for trial in self.trials]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        lines = [f"{len(self.trials)} trials: {counts}", f"table {self.folder / TABLE}"]
        if self.best is None:
            return [*lines, "no trial came to its end: there is no best one"]
        drawn = ", ".join(f"{name} {value:.4g}" for name, value in self.best.params.items())
        return [
            f"best {self.best.value:.4f}, trial {self.best.number}: {drawn}",
            *lines,
            f"hyperparameters {self.folder / BEST}  weights {self.folder / self.best.folder}/weights/best.pt",
            f"train with them: {self.command}",
        ]

    def results(self) -> TuneResults:
        """As builtins."""
        best = self.best
        return {
            "folder": str(self.folder),
            "best": self._of(best) if best else None,
            "hyp": dict(self.hyp),
            "weights": str(self.folder / best.folder / "weights" / "best.pt") if best else "",
            "command": self.command,
            "trials": [self._of(trial) for trial in self.trials],
        }

    def _of(self, trial: Trial) -> TrialResults:
        return {
            "number": trial.number,
            "state": trial.state,
            "value": trial.value,
            "epochs": max(trial.values, default=0),
            "params": dict(trial.params),
            "folder": str(self.folder / trial.folder),
            "repeats": trial.repeats,
        }


def outcome_of(folder: Path, trials: Sequence[Trial], flags: Mapping[str, Any]) -> Outcome:
    """What there is to say of a search.

    Args:
        folder: of the search.
        trials: all of them.
        flags: of each trial's training; ``hyp`` has the hyperparameters that are not searched, too.
    """
    best = best_of(list(trials))
    hyp = {**flags["hyp"], **best.params} if best else {}
    return Outcome(folder, trials, best, hyp, _command(folder, flags))


def write_outcome(outcome: Outcome) -> None:
    """Write ``trials.csv``, and ``best.yaml`` where there is a best trial.

    Raises:
        OSError: the folder takes no file.
    """
    with replacing(outcome.folder / TABLE) as file:
        file.write(_table(outcome.trials).encode())
    if outcome.best is not None:
        about = f"# trial {outcome.best.number} of {len(outcome.trials)}: {outcome.best.value:.6f}\n"
        with replacing(outcome.folder / BEST) as file:
            file.write((about + yaml.safe_dump(dict(outcome.hyp), sort_keys=False)).encode())


def _table(trials: Sequence[Trial]) -> str:
    """A row a trial; empty where something is not known."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["trial", "state", "value", "epochs", "seconds", "repeats", "folder", *names])
    for trial in trials:
        seconds = "" if trial.seconds is None else f"{trial.seconds:.1f}"
        last = max(trial.values, default=0)
        known = [trial.value, last, seconds, trial.repeats, trial.folder]
        drawn = [trial.params.get(name) for name in names]
        rows.writerow(
            [trial.number, trial.state, *("" if value is None else value for value in [*known, *drawn])]
        )
    return text.getvalue()


def _command(folder: Path, flags: Mapping[str, Any]) -> str:
    actions = {action.dest: action for action in train_parser()._actions}
    words = [
        word
        for name, value in flags.items()
        if name in actions and name not in _NOT_OF_TRAINING
        for word in argument_words(actions[name], name, dict(value) if name == "class_map" else value)
    ]
    return shlex.join(["horovod-yolo", "train", *words, "--hyp", str(folder / BEST)])
