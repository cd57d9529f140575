"""A run's steps made once more: where do they differ from what the run has left?"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from horovod_yolo.core.types import Ints
from horovod_yolo.telemetry.csv_log import step_row
from horovod_yolo.training.events import Callback, StepReport

NOT_COMPARED = ("step", "epoch")


def recorded_steps(table: Path) -> dict[int, dict[str, str]]:
    """The whole lines of a ``steps.csv``, by step.

    Raises:
        OSError: it cannot be read.
        ValueError: it is some other file.
    """
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        if not {"step", "epoch"} <= {*(reader.fieldnames or ())}:
            raise ValueError("it is no table of steps")
        rows = [row for row in reader if None not in row.values() and None not in row]
    return {int(row["step"]): row for row in rows if row["step"].isdecimal() and row["epoch"].isdecimal()}


class Place(NamedTuple):
    """A gradient before the sum: batch of the step and slice, from 0, and tensor."""

    batch: int
    slice: int
    tensor: str


@dataclass(frozen=True)
class Difference:
    """A step that came out otherwise: what the run has, and what is here, by column."""

    step: int
    columns: Mapping[str, tuple[str, str]]
    gradients: tuple[Place, ...] | None = None  # of which digests differ; None: the run has not recorded them

    def lines(self) -> list[str]:
        """For people."""
        width = max(map(len, self.columns), default=0)
        found = [f"{name:{width}}  run {run}  here {here}" for name, (run, here) in self.columns.items()]
        if self.gradients is not None:
            found += [self._of_gradients(self.gradients)]
        return found

    def _of_gradients(self, places: Sequence[Place]) -> str:
        if not places:
            return "the gradients of all slices are the same: what differs came in their sum or in the update"
        first = places[0]
        of_slice = [place for place in places if place[:2] == first[:2]]
        others = len({place[:2] for place in places}) - 1
        words = f"slice {first.slice} of batch {first.batch}: the gradient of {first.tensor} differs"
        if len(of_slice) > 1:
            words += f", and those of {len(of_slice) - 1} more tensors, which are nearer to the image"
        words += f"; so do gradients of {others} other slices" if others else ""
        return words + ("" if self.columns else "; rounding has hidden it from the sum")


@dataclass(frozen=True)
class TensorsCompared:
    """A checkpoint of the run beside the state of here at the same step."""

    step: int
    file: str
    different: Mapping[str, list[str]]  # names of tensors by the part of the state
    count: int  # tensors of all parts

    def __str__(self) -> str:
        if not any(self.different.values()):
            return f"{self.file} of step {self.step}: weights, averages and optimizer state are the same"
        parts = [f"{_listed(names)} of the {part}" for part, names in self.different.items() if names]
        found = sum(map(len, self.different.values()))
        return f"{self.file} of step {self.step}: {found} of {self.count} tensors differ: {'; '.join(parts)}"


@dataclass
class Comparison(Callback):
    """Compares each step, and the state where the run has a checkpoint of the same step.

    Args:
        rows: of the run's ``steps.csv``, by step.
        checkpoint: gives the run's state at the step of this one, and the name of its file; None where none
            is kept.
        tensors_recorded: names of the tensors whose gradients the run has recorded.
        recorded: (batches, slices, tensors) digests of these, by step.
    """

    rows: Mapping[int, Mapping[str, str]]
    checkpoint: Callable[[Mapping[str, Any]], tuple[dict[str, Any], str] | None]
    tensors_recorded: Sequence[str] = ()
    recorded: Mapping[int, Ints] = field(default_factory=dict)
    equal: list[int] = field(default_factory=list)  # steps
    differences: list[Difference] = field(default_factory=list)
    tensors: list[TensorsCompared] = field(default_factory=list)
    replaced: int = 0  # images that could not be read here

    def on_step(self, report: StepReport) -> None:
        """Compare a step by all that both have."""
        self.replaced += report.result.replaced
        run = self.rows.get(report.step)
        if run is None:
            return
        here = {name: str(value) for name, value in step_row(report).items() if value is not None}
        columns = {
            name: (run[name], value)
            for name, value in here.items()
            if name not in NOT_COMPARED and run.get(name) and run[name] != value
        }
        gradients = self._gradients(report)
        if columns or gradients:
            self.differences.append(Difference(report.step, columns, gradients))
        else:
            self.equal.append(report.step)

    def _gradients(self, report: StepReport) -> tuple[Place, ...] | None:
        """Of which digests differ, in the order in which the backward pass comes to them."""
        run, here = self.recorded.get(report.step), report.result.slice_digests
        if run is None or here is None or run.shape != here.shape:
            return None
        found = sorted(np.argwhere(run != here).tolist(), key=lambda at: (at[0], at[1], -at[2]))
        return tuple(Place(batch, number, self.tensors_recorded[k]) for batch, number, k in found)

    def on_commit(self, state: dict[str, Any], best: bool) -> None:
        """Compare the state, once a step."""
        if any(compared.step == state["step"] for compared in self.tensors):
            return
        found = self.checkpoint(state)
        if found is not None:
            self.tensors.append(compared(*found, state))


def compared(run: Mapping[str, Any], file: str, here: Mapping[str, Any]) -> TensorsCompared:
    """A state of the run and one of here, tensor by tensor."""
    pairs = {
        "weights": (run["model"], here["model"]),
        "averages": (run["ema"]["weights"], here["ema"]["weights"]),
        "optimizer state": (_moments(run), _moments(here)),
    }
    different = {part: [name for name in both[0] if _unlike(name, *both)] for part, both in pairs.items()}
    return TensorsCompared(here["step"], file, different, sum(len(run) for run, _ in pairs.values()))


def _moments(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the optimizer remembers of each parameter."""
    of_parameters = state["optimizer"]["state"].items()
    return {f"{n}.{key}": v for n, own in of_parameters for key, v in own.items() if isinstance(v, Tensor)}


def _unlike(name: str, run: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> bool:
    return name not in here or not run[name].equal(here[name].detach().to(run[name].device))


def _listed(names: list[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
