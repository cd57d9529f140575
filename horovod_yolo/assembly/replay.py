"""A run's steps made once more, on as many ranks as there are, from a checkpoint before them."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.compiling import require_compiler
from horovod_yolo.assembly.data import Data, run_data
from horovod_yolo.assembly.data_state import require_same_images
from horovod_yolo.assembly.device import arithmetic
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.resuming import settings_here
from horovod_yolo.assembly.run import Run
from horovod_yolo.assembly.run_folder import discard_if_empty, new_run_folder, write_config, write_json
from horovod_yolo.assembly.settings import kept_settings
from horovod_yolo.assembly.train import gradient_record, spec_of
from horovod_yolo.checkpoint import earlier
from horovod_yolo.checkpoint.earlier import Kept
from horovod_yolo.checkpoint.resume import generations
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import StoppedError, UserError
from horovod_yolo.core.types import Ints
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.lost_images import MOST_NAMED
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.telemetry.comparison import Comparison, Difference, recorded_steps
from horovod_yolo.telemetry.csv_log import StepLog
from horovod_yolo.telemetry.gradient_record import NAME as RECORD
from horovod_yolo.telemetry.gradient_record import recorded_gradients
from horovod_yolo.telemetry.progress import ProgressDisplay
from horovod_yolo.training.events import Callback
from horovod_yolo.training.loop import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayOptions:
    """What to replay, and where. Every field but the steps is a flag."""

    run: str
    first: int  # step
    last: int | None  # None: the last there is
    data: str = ""
    device: str = ""
    workers: int | None = None
    cache_dir: str = ""
    project: str = "runs/replay"
    name: str = ""

    def __post_init__(self) -> None:
        if self.first < 1 or (self.last is not None and self.last < self.first):
            last = "" if self.last is None else self.last
            raise UserError(
                f"--steps {self.first}:{last}", fix="steps count from 1, and the last is not before the first"
            )

    @property
    def place(self) -> dict[str, Any]:
        """The flags that a resumed run may have too."""
        given = {name: getattr(self, name) for name in ("data", "device", "workers", "cache_dir")}
        return {name: value for name, value in given.items() if value not in ("", None)}


@dataclass(frozen=True)
class Found:
    """What a run has left of the steps."""

    folder: Path
    state: dict[str, Any]
    start: Kept
    later: Sequence[Kept]
    rows: Mapping[int, Mapping[str, str]]
    last: int
    tensors: Sequence[str]  # whose gradients the run has recorded
    gradients: Mapping[int, Ints]  # their digests, by step
    time_plan: dict[str, Any] | None  # with --time: the newest, with all that was decided


@dataclass(frozen=True)
class Replayed:
    """What came out."""

    found: Found
    folder: Path
    ranks: int
    slices: int
    comparison: Comparison

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        tensors = (names for each in self.comparison.tensors for names in each.different.values())
        return not self.comparison.differences and not any(tensors)

    def lines(self) -> list[str]:
        """For people."""
        found, comparison = self.found, self.comparison
        first, last = found.start.step + 1, found.last
        by = f"on {self.ranks} rank{'s' * (self.ranks > 1)}, "
        by += f"from {found.start.path.name} of step {found.start.step}"
        files = [str(each) for each in comparison.tensors]
        if not comparison.differences:
            columns = "losses and norm of the gradient"
            columns += ", weights (digest)" if self.has_digests else "; the run has no digests of its weights"
            return [f"steps {first} to {last} are the same, {by}: {columns}", *files]
        worst = comparison.differences[0]
        same = f"; steps {first} to {worst.step - 1} are the same" if worst.step > first else ""
        known = self._known(worst) if worst.columns else []
        return [f"step {worst.step} differs{same}; {by}", *worst.lines(), *known, *files]

    @property
    def has_digests(self) -> bool:
        """Whether the run has written any."""
        return any(row.get("digest") for row in self.found.rows.values())

    def _known(self, worst: Difference) -> list[str]:
        """What else is known of where it differs."""
        step = worst.step
        found = ["which slice is not known: the step is not in a --record"] * (worst.gradients is None)
        after = [each.step for each in self.comparison.tensors if each.step >= step]
        if step in after:
            return [*found, f"the run has a checkpoint of step {step}: its tensors that differ are below"]
        if after:
            return [*found, f"the next checkpoint is of step {after[0]}: by then what differed has spread"]
        return [*found, "no later checkpoint of the run is kept: nothing is known of which tensors differ"]


def replay(options: ReplayOptions, comm: Communicator, stop: StopRequest | None = None) -> Replayed:
    """Make steps of a run once more and compare them; on rank 0 the answer is complete. *Collective.*

    Raises:
        UserError: the steps cannot be made once more; on all ranks alike.
        StoppedError: ``stop`` was asked for on any rank; on all ranks alike.
    """
    stop = stop or StopRequest()
    stop.alone_from_here(f"before the first step; {options.run} is as it was")
    options = replace(options, data=data_here(options.data, comm))
    found = on_rank_0(comm, lambda: find(options))
    config = together(comm, lambda: _settings(found, options))
    together(comm, lambda: config.check_world(comm.size))
    spec = together(comm, lambda: spec_of(Run(config, found.folder, found.state)))
    data = run_data(spec, config, None, comm)
    together(comm, lambda: require_same_images(found.state.get("data", {}), data.train))
    folder = on_rank_0(comm, lambda: _own_folder(found, options))
    log.info(
        "steps %d to %d from %s, of step %d, in %s",
        *(found.start.step + 1, found.last, found.start.path, found.start.step, folder),
    )
    try:
        replayed = _replayed(Run(config, folder, found.state), found, data, comm, stop)
    except UserError:
        if comm.rank == 0:
            discard_if_empty(folder)
        raise
    if comm.rank == 0:
        _write(replayed)
    return replayed


def find(options: ReplayOptions) -> Found:
    """What the run has left of the steps, read only.

    Raises:
        UserError: there is no such run, or it has not these steps.
    """
    folder = Path(options.run)
    try:
        rows = recorded_steps(folder / "steps.csv")
    except (OSError, ValueError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot be read ({why})", where=folder / "steps.csv", fix="name a run folder"
        ) from None
    last = options.last or max(rows, default=0)
    for step in (options.first, last):
        if step not in rows:
            have = f"steps {min(rows)} to {max(rows)}" if rows else "no step"
            raise UserError(f"has {have}, and no step {step}", where=folder / "steps.csv", fix="see --steps")
    state, start, later = earlier.nearest_before(folder, options.first, int(rows[options.first]["epoch"]))
    rows = {step: row for step, row in rows.items() if start.step < step <= last}
    tensors, gradients = _recorded(folder)
    gradients = {step: digests for step, digests in gradients.items() if step in rows}
    return Found(folder, state, start, later, rows, last, tensors, gradients, _time_plan(folder, state))


def _time_plan(folder: Path, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the newest checkpoint knows of how many epochs there were, and when that was decided."""
    if "time_plan" not in state:
        return None
    newest = next(filter(None, map(earlier.read, generations(folder / "weights"))), state)
    plan: dict[str, Any] = newest["time_plan"]
    return plan


def _recorded(folder: Path) -> tuple[Sequence[str], Mapping[int, Ints]]:
    try:
        found = recorded_gradients(folder)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used (%s): steps are compared without it", folder / RECORD, error)
        found = None
    return (found[0].tensors, found[1]) if found else ((), {})


def _settings(found: Found, options: ReplayOptions) -> TrainConfig:
    """The run's own, ended after the last step, and committed after each to be compared."""
    config = kept_settings(settings_here(found.state, options.place), found.state["model_name"])
    return replace(
        config,
        max_steps=found.last,
        commit_every=1,
        save_period=-1,
        elastic=False,
        noplots=True,
        record=len(found.gradients),
        check_every=0,
        stage="",
        log_dir="",
        dashboard="",
        log_to=(),
    )


def _own_folder(found: Found, options: ReplayOptions) -> Path:
    project = Path(options.project).absolute()
    run = found.folder.absolute()
    if run == project or run in project.parents:
        raise UserError(f"--project {options.project} is in the run's folder", fix="name another place")
    return new_run_folder(project, options.name or run.name, exist_ok=False, inside="")


def _replayed(run: Run, found: Found, data: Data, comm: Communicator, stop: StopRequest) -> Replayed:
    comparison = Comparison(
        found.rows, lambda state: _checkpoint(found, state), found.tensors, found.gradients
    )
    callbacks: list[Callback] = []
    if comm.rank == 0:
        callbacks = [StepLog(run.folder), ProgressDisplay(alone=comm.size == 1), comparison]
    exactly = partial(arithmetic, run.config.precision, deterministic=run.config.deterministic)
    require_compiler(run.config, comm)
    with exactly():  # what is compiled is so for this arithmetic
        trainer = build_trainer(run.config, data, comm, callbacks, run.state, stop)
    if trainer.evaluator is not None and trainer.sampler.weights is None:  # which validations set
        trainer.evaluator.close()
        trainer.evaluator = None
    if trainer.plan is not None:
        trainer.plan.repeated = found.time_plan
    trainer.stepper.digests = comm.rank == 0
    if comm.rank == 0 and trainer.stepper.record is not None:
        callbacks.append(gradient_record(run.folder, trainer))
    _warn(trainer)
    if comm.rank == 0:
        write_config(run.folder, trainer.config)
    try:
        with exactly():
            trainer.fit()
        _require_read(trainer, comparison)
    except StoppedError:
        words = f"after step {trainer.progress.step}; {found.folder} is as it was"
        raise StoppedError(words, request="certain") from None
    finally:
        trainer.close()
    return Replayed(found, run.folder, comm.size, trainer.config.slices, comparison)


def _checkpoint(found: Found, state: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
    """The run's state at the step of this one, where it is kept."""
    paths = [kept.path for kept in found.later if kept.step == state["step"]]
    if state["sampler"]["batch"] == 0:
        paths.append(earlier.of_epoch(found.folder, state["sampler"]["epoch"]))
    for path in paths:
        kept = earlier.read(path)
        if kept and kept["step"] == state["step"]:
            return kept, path.name
    return None


def _warn(trainer: Trainer) -> None:
    """Say where a difference need not mean anything."""
    config, device = trainer.config, trainer.stepper.precision.device
    if config.sums != "exact" and config.slices != 1:
        began = f"the {config.slices} that it began on" if config.slices else "as many as it had"
        log.warning(
            "the run's sums are of floats: its bits come again on as many ranks only, %s; here are %d",
            *(began, trainer.comm.size),
        )
    if device.type != "cpu" and not config.deterministic:
        log.warning("the run is without --deterministic: on a GPU its bits need not come again")


def _require_read(trainer: Trainer, comparison: Comparison) -> None:
    """Raise `UserError` where steps differ and images could not be read. *Collective.*"""
    comm = trainer.comm
    lost = [f"{image.path} ({image.reason})" for image in trainer.loader.lost.values()]
    named = [*dict.fromkeys(path for paths in comm.allgather_object(lost[:MOST_NAMED]) for path in paths)]
    first = comm.broadcast_object(next((each.step for each in comparison.differences), 0))
    if named and first:
        raise UserError(
            f"images of these steps cannot be read any more: {', '.join(named[:MOST_NAMED])}; step {first} "
            "differs, maybe only for that",
            fix="mend the data set",
        )


def _write(replayed: Replayed) -> None:
    found, comparison = replayed.found, replayed.comparison
    write_json(
        replayed.folder / "replay.json",
        {
            "run": str(found.folder),
            "checkpoint": str(found.start.path),
            "steps": [found.start.step + 1, found.last],
            "ranks": replayed.ranks,
            "slices": replayed.slices,
            "same": replayed.same,
            "different_steps": [asdict(each) for each in comparison.differences],
            "checkpoints": [asdict(each) for each in comparison.tensors],
        },
    )
