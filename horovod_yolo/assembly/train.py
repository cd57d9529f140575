"""A training run from its first step here to its results."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.anew import say_restarts
from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.compiling import require_compiler
from horovod_yolo.assembly.data import Data, run_data
from horovod_yolo.assembly.data_state import data_state, require_same_data
from horovod_yolo.assembly.device import arithmetic, precision_name
from horovod_yolo.assembly.hand_on import host_id
from horovod_yolo.assembly.labels import label_rules
from horovod_yolo.assembly.live import Watching, dashboard
from horovod_yolo.assembly.loggers import Ids, deliveries, logger_ids_of
from horovod_yolo.assembly.results import finish, results_of, time_spent
from horovod_yolo.assembly.run import Run
from horovod_yolo.assembly.run_folder import discard_if_empty, write_config
from horovod_yolo.assembly.staging import staged
from horovod_yolo.checkpoint import resume
from horovod_yolo.checkpoint.checkpointer import Checkpointer
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import (
    FaultyRankError,
    PrunedError,
    Request,
    StoppedError,
    UnwrittenError,
    UserError,
)
from horovod_yolo.data.spec import DataSpec, load_data_yaml
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.telemetry.csv_log import EpochLog, StepLog
from horovod_yolo.telemetry.gradient_record import GradientRecord
from horovod_yolo.telemetry.progress import ProgressDisplay
from horovod_yolo.telemetry.report import ReportWriter
from horovod_yolo.training.events import Callback
from horovod_yolo.training.loop import Trainer

log = logging.getLogger(__name__)
SECONDS_BETWEEN_SAVES = 60.0  # on disk, within an epoch; an elastic run's commits between are in memory only


def train(run: Run, comm: Communicator, stop: StopRequest | None = None) -> dict[str, Any]:
    """Train to the end and return what ``results.json`` holds. *Collective.*

    Raises:
        UserError: a mistake in the settings or the data, on all ranks alike.
        NonFiniteError: training diverged, on all ranks alike.
        FaultyRankError: a rank computes wrongly; on all ranks alike, and the checkpoint is of before.
        MemoryShortError: a rank lacks memory, also for half as many images at a time; on all ranks alike.
        UnwrittenError: the run is over, but not all of it is on the disk; on all ranks alike.
        StoppedError: ``stop`` was asked for on any rank; all ranks alike, and the checkpoint is written.
        PrunedError: the judge of a search has ended the run; on all ranks alike.
        TakenError: on rank 0: another job has taken the run over.
    """
    stop = stop or StopRequest()
    if run.elastic is None or run.state is None:  # else its last commit may be in memory only
        stop.alone_from_here(f"before the first step; {_kept(run)}")
    try:
        with run.lock.until_over(handed_on=run.elastic is not None):
            on_rank_0(comm, lambda: _take(run))
            if comm.rank != 0:
                run.lock.drop()
            require_compiler(run.config, comm)
            say_restarts(run.config.steps_between_commits, run.folder, run.lock, comm)
            with dashboard(run, comm) as watching:
                return _trained(run, comm, stop, watching)
    except UserError:
        if comm.rank == 0 and run.state is None:
            discard_if_empty(run.folder)
        raise


def _take(run: Run) -> None:
    """Let no other job work on this run, and see that none did since this one looked."""
    run.lock.take(run.folder)
    if run.written_ns not in (None, resume.written_ns(run.folder)):
        raise UserError("another job has just trained this run", where=run.folder, fix="start this one again")


def _trained(run: Run, comm: Communicator, stop: StopRequest, watching: Watching) -> dict[str, Any]:
    logger_ids = logger_ids_of(run, comm)
    spec = together(comm, lambda: spec_of(run))
    data = run_data(spec, run.config, run.elastic.known_data if run.elastic else None, comm)
    least_seconds = SECONDS_BETWEEN_SAVES if run.elastic else 0.0
    checkpointer = Checkpointer(run.folder / "weights", run.config.save_period, least_seconds)
    of_data = together(comm, lambda: _data_state(run, data))
    data, callbacks = staged(data, run.config.stage, keeper=comm.local_rank == 0)
    if comm.rank == 0:
        callbacks += [run.lock, checkpointer, *_callbacks(run, alone=comm.size == 1)]
    first_size = run.elastic.first_size if run.elastic else comm.size
    exactly = partial(arithmetic, run.config.precision, deterministic=run.config.deterministic)
    with exactly():  # cuBLAS reads once, when it is first used, what it may do
        trainer = build_trainer(run.config, data, comm, callbacks, run.state, stop, first_size)
    trainer.keep, trainer.judge = run.elastic.keep if run.elastic else None, run.judge
    trainer.stepper.digests = comm.rank == 0
    watching.begin(trainer, callbacks, checkpointer)
    device = trainer.stepper.precision.device
    trainer.about |= {"data": of_data, "precision": precision_name(run.config.precision, device)}
    trainer.about |= {"loggers": logger_ids} if logger_ids else {}
    begun_with = trainer.config
    if comm.rank == 0:
        callbacks += _of_trainer(run, trainer, data, logger_ids)
        _try_config(run.folder, begun_with)
    try:
        with exactly():
            trainer.fit()
        spent = time_spent(trainer)
        checkpointer.wait()
        if comm.broadcast_object(checkpointer.nothing_owed):
            words = f"after the last step; --resume {run.folder} writes the results and the report"
            stop.alone_from_here(words)
        results = results_of(trainer, spent)
        unwritten = finish(run.folder, callbacks, results) if comm.rank == 0 else None
        changed = trainer.config != begun_with or not (run.folder / "config.yaml").exists()
        if comm.rank == 0 and changed:
            _try_config(run.folder, trainer.config)
    except (PrunedError, StoppedError) as error:
        checkpointer.wait()
        pruned = isinstance(error, PrunedError)
        raise (error if pruned else _stopped(run, trainer, comm, checkpointer)) from None
    except FaultyRankError as error:
        checkpointer.wait()
        fix = f"The step was not made. Take the machine out, and go on with --resume {run.folder}"
        raise FaultyRankError(f"{error}. {fix}", error.event) from None
    finally:
        trainer.close()
    unwritten = comm.broadcast_object(unwritten)
    if unwritten:
        raise UnwrittenError("; ".join(unwritten))
    return results


def _data_state(run: Run, data: Data) -> dict[str, Any]:
    """What the run's checkpoints say of its data, which must be what they said before."""
    now = data_state(data)
    said = run.state.get("data", {}) if run.state is not None else {}
    if run.elastic is not None and run.elastic.known_data.digests is not None:  # it was handed on
        return said or now
    return require_same_data(said, now, changed=run.config.data_changed)


def spec_of(run: Run) -> DataSpec:
    """The run's data file, read by its rules and for its classes."""
    if run.state is not None and not Path(run.config.data).exists():
        fix = f"say where it is now: --resume {run.folder} --data path/to/data.yaml"
        raise UserError("the data of the run is not there", where=run.config.data, fix=fix)
    spec = load_data_yaml(Path(run.config.data), label_rules(run.config, run.state))
    if run.state is None:
        return spec.single_class() if run.config.single_cls else spec
    return spec.for_classes(run.state["names"], "the classes of the data and of the run")


def _kept(run: Run) -> str:
    if run.state is None:
        return f"nothing was trained and {run.folder} has no checkpoint"
    return f"{run.folder} has the checkpoint of step {run.state['step']} as before"


def _stopped(run: Run, trainer: Trainer, comm: Communicator, checkpointer: Checkpointer) -> StoppedError:
    """What to say of a run that was stopped, the same on all ranks. *Collective.*"""
    saved, words = False, ""
    if comm.rank == 0:  # which has written the checkpoint, or has not
        saved = checkpointer.saved
        words = f"checkpoint {run.folder / 'weights' / 'last.pt'}; go on with --resume {run.folder}"
        if not saved:
            words = f"ITS CHECKPOINT COULD NOT BE WRITTEN ({checkpointer.refused}), {_older(run.folder)}"
    saved, words = comm.broadcast_object((saved, words))
    words = f"after step {trainer.progress.step}, {words}"
    return StoppedError(words, saved=saved, request=_request(trainer.stop, comm))


def _request(stop: StopRequest, comm: Communicator) -> Request:
    """Whether the launcher, which may want to start ranks anew, was the only one to ask. *Collective.*"""
    parent = (host_id(), os.getppid())
    told = comm.allgather_object((parent, stop.asked, stop.certain))
    if any(certain for _, _, certain in told):
        return "certain"
    return "here" if any(asked and whose == parent for whose, asked, _ in told) else "elsewhere"


def _older(folder: Path) -> str:
    """Which checkpoint there is instead of one that could not be written."""
    try:
        state, path, _ = resume.load(folder)
    except UserError as error:
        return f"and there is {error}"
    return f"{path} is of step {state['step']}; mend the disk and go on from there with --resume {folder}"


def _try_config(folder: Path, config: TrainConfig) -> None:
    """Write ``config.yaml``, which is for people: a resumed run has its settings from the checkpoint."""
    try:
        write_config(folder, config)
    except OSError as error:
        log.warning("%s: %s; training goes on", folder / "config.yaml", error.strerror or error)


def _callbacks(run: Run, *, alone: bool) -> list[Callback]:
    callbacks: list[Callback] = [StepLog(run.folder), EpochLog(run.folder)]
    return [*callbacks, ProgressDisplay(alone=alone)] if run.shown else callbacks


def _of_trainer(run: Run, trainer: Trainer, data: Data, logger_ids: Ids) -> list[Callback]:
    """Callbacks that know the trainer. Loggers have the time in which the report is written."""
    sent: list[Callback] = [*deliveries(run, trainer.config, logger_ids)]
    record = [] if trainer.stepper.record is None else [gradient_record(run.folder, trainer)]
    return [*sent, *record, *([] if run.config.noplots else [_report_writer(run, trainer, data)])]


def gradient_record(folder: Path, trainer: Trainer) -> GradientRecord:
    """What ``--record`` keeps."""
    config, record = trainer.config, trainer.stepper.record
    assert record is not None
    return GradientRecord(folder, config.record, config.slices, record.names)


def _report_writer(run: Run, trainer: Trainer, data: Data) -> ReportWriter:
    return ReportWriter(
        run.folder,
        first_batch=trainer.sampler.rank_keys(epoch=0, batch=0),
        transform=trainer.transform,
        training=data.train,
        validation=data.val,
        model=trainer.ema.model,
        imgsz=trainer.config.imgsz,
        precision=trainer.stepper.precision,
    )
