"""What happens in a run, and what may watch it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from horovod_yolo.core.types import Ints
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.training.schedule import Rates, Schedule

MOST_SHOWN = 16  # ranks in a line


@dataclass(frozen=True)
class RunStart:
    """Where a run begins, new or resumed."""

    step: int  # optimizer steps done
    epoch: int  # the first to be trained, or to be finished
    epochs_reported: int  # one more where `--max-steps` has closed this one before its end
    schedule: Schedule
    terms: tuple[str, ...]  # names of the loss terms, in the order in which they are shown
    batch: int = 0  # of that epoch, the first to be trained
    taught: tuple[str, ...] = ()  # of the terms, those that validation has not, as a teacher gives them


@dataclass(frozen=True)
class RankTime:
    """What a rank has done in a step, and since the one before: seconds, and images that it trained on."""

    images: int = 0
    seconds: float = 0.0  # from step to step, with all waits
    data_wait_s: float = 0.0
    rank_wait_s: float = 0.0


@dataclass(frozen=True)
class StepResult:
    """Global values of one optimizer step."""

    losses: Mapping[str, float]  # the loss terms by name: means over the images
    images: int
    grad_norm: float
    skipped: bool
    stop: bool = False  # a rank was asked to stop; all see it in the same step
    replaced: int = 0  # of the images, those that stand for a lost one
    redone: bool = False  # in smaller passes, because a rank ran out of memory
    digest: int | None = None  # of weights and running statistics after it, where it was asked for
    slice_digests: Ints | None = None  # (batches, slices, tensors) of gradients before the sum, likewise
    ranks: tuple[RankTime, ...] = ()  # by rank, where they tell it


@dataclass(frozen=True)
class StepReport:
    """One optimizer step of a run."""

    step: int
    epoch: int
    rates: Rates
    result: StepResult


@dataclass(frozen=True)
class SharesReport:
    """How many slices each rank has from the next step on, by rank, and what a slice took each."""

    step: int  # after which
    shares: tuple[int, ...]
    seconds: tuple[float, ...]

    def words(self) -> str:
        """For people; of many ranks the first."""
        ranks = [
            f"rank {rank} has {share} ({1000 * seconds:.0f} ms each)"
            for rank, (share, seconds) in enumerate(zip(self.shares, self.seconds, strict=True))
        ]
        return ", ".join(ranks[:MOST_SHOWN] + ["..."] * (len(ranks) > MOST_SHOWN))


@dataclass(frozen=True)
class PlanReport:
    """With ``--time``: how many epochs the run has, as decided after some of them."""

    after: int  # epochs
    schedule: Schedule  # of so many epochs


@dataclass(frozen=True)
class EpochReport:
    """One epoch, global values; times are this rank's."""

    epoch: int
    losses: Mapping[str, float]  # the loss terms by name: means over the epoch's images
    evaluation: Evaluation | None
    rates: Rates
    images: int
    seconds: float
    data_wait_s: float
    comm_wait_s: float
    best: bool


class Callback(Protocol):
    """Something that watches a run; a subclass names the moments it cares for.

    It must not take part in the run: no collective calls.
    """

    def on_start(self, start: RunStart) -> None:
        """Before the first step."""
        return

    def on_step(self, report: StepReport) -> None:
        """After each optimizer step."""
        return

    def on_shares(self, report: SharesReport) -> None:
        """Where `--balance auto` gives ranks other slices."""
        return

    def on_plan(self, report: PlanReport) -> None:
        """Where `--time` gives the run another number of epochs."""
        return

    def on_epoch(self, report: EpochReport) -> None:
        """After each epoch and its validation."""
        return

    def on_commit(self, state: dict[str, Any], best: bool) -> None:
        """With everything a resumed run needs; ``best`` where its metrics are the best so far."""
        return

    def on_end(self, results: dict[str, Any]) -> None:
        """After the last epoch, with the content of ``results.json``."""
        return

    def close(self) -> None:
        """At the very end, also of a run that ends early or begins anew: keep no thread and no file."""
        return
