"""What all loggers have alike: one is told of a run, takes its points, and may fail at any of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from horovod_yolo.core.results import SCORES

Axis = Literal["step", "epoch"]
End = Literal["finished", "stopped", "broken off"]
_NUMBERS = ("best_epoch", "images_per_s", "wall_s", "parameters", "world_size")


@dataclass(frozen=True)
class LoggedRun:
    """A run as a logger is told of it."""

    uid: str  # stays the same when it is resumed, and whichever rank is rank 0
    known_id: str  # what the logger called it, as the checkpoint has it; empty: not known
    folder: Path
    settings: Mapping[str, str | int | float | bool]  # flat; secrets are left out
    step: int  # steps and epochs that are done before this job
    epochs: int


@dataclass(frozen=True)
class Sent:
    """How far a logger has a run."""

    run_id: str  # by which it knows the run; empty where it has no need
    step: int = 0  # the last it has, counted from 1
    epoch: int = -1  # likewise, counted from 0


@dataclass(frozen=True)
class Point:
    """Numbers of one moment: a row of ``steps.csv`` or ``results.csv``."""

    axis: Axis
    number: int  # of the step or epoch
    time: float  # seconds since 1970
    values: Mapping[str, float]


class Logger(Protocol):
    """Where a run is logged. One thread calls it, and that may wait.

    Any method may raise anything. Then `open` is called again, later, and says anew what has arrived.
    """

    name: str  # as ``--log-to`` has it
    confirms: bool  # whether what `send` took has arrived; otherwise `finish` tells

    def open(self, run: LoggedRun) -> Sent:
        """Begin with a run, or go on with it. What is sent next is what comes after the answer."""

    def send(self, points: Sequence[Point]) -> None:
        """Add points, all of one axis, in their order: all of them or none."""

    def finish(self, end: End, results: Mapping[str, Any]) -> None:
        """Say how the run ended; ``results`` is the content of ``results.json``, empty where it has none."""

    def close(self) -> None:
        """Let go of connections and files. Also after an error, and before the next `open`."""


def final_numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of ``results.json`` that a table of runs shows, by their names in loggers."""
    found = {name: results.get("metrics", {}).get(name) for name in SCORES}
    found |= {name: results.get(name) for name in _NUMBERS}
    yield from ((f"results/{name}", float(value)) for name, value in found.items() if value is not None)
