"""A training run from settings to results, new or resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from horovod_yolo.assembly.build import build_trainer, round_to_stride
from horovod_yolo.assembly.data import Data, run_data
from horovod_yolo.assembly.data_state import data_state, require_same_data
from horovod_yolo.assembly.device import arithmetic, precision_name
from horovod_yolo.assembly.elastic import SECONDS_BETWEEN_SAVES, Elastic
from horovod_yolo.assembly.labels import label_rules
from horovod_yolo.assembly.resuming import PATHS, absolute_paths, settings_here
from horovod_yolo.assembly.run_folder import new_run_folder, versions, write_config, write_json
from horovod_yolo.assembly.run_lock import RunLock
from horovod_yolo.checkpoint import resume
from horovod_yolo.checkpoint.checkpointer import Checkpointer
from horovod_yolo.checkpoint.state import copied
from horovod_yolo.config.load import config_from_flags
from horovod_yolo.config.schema import TrainConfig, from_dict, to_dict
from horovod_yolo.core.errors import StoppedError, UnwrittenError, UserError
from horovod_yolo.data.spec import DataSpec, load_data_yaml
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.families import zoo
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.telemetry import tensorboard
from horovod_yolo.telemetry.csv_log import EpochLog, StepLog
from horovod_yolo.telemetry.progress import ProgressDisplay
from horovod_yolo.telemetry.report import ReportWriter
from horovod_yolo.training.events import Callback
from horovod_yolo.training.loop import Trainer

if TYPE_CHECKING:
    from horovod_yolo.distributed.elastic import Kept

log = logging.getLogger(__name__)
Found = tuple[dict[str, Any], Path, int]


@dataclass(frozen=True)
class Run:
    """What to do and where: a config, its folder, and the state to go on from."""

    config: TrainConfig
    folder: Path
    state: dict[str, Any] | None
    elastic: Elastic | None = None
    lock: RunLock = field(default_factory=RunLock)
    written_ns: int | None = None  # its last checkpoint, when this job looked for it; None: it is not known


def start_run(target: str, given: dict[str, Any], comm: Communicator) -> Run:
    """The run that the command line asks for. *Collective.*

    Args:
        target: of ``--resume``: empty for a new run, ``auto`` for that of this name, new or not.
        given: the other flags that were given.
        comm: the ranks.
    """
    if target == "auto":
        return found_or_new_run(given, comm)
    if target:
        return resumed_run(target, given, comm)
    return new_run(together(comm, lambda: config_from_flags(given)), comm)


def new_run(config: TrainConfig, comm: Communicator) -> Run:
    """A run of its own, in a folder that rank 0 makes. *Collective.*"""
    config = replace(config, **absolute_paths({name: getattr(config, name) for name in PATHS}))
    together(comm, lambda: _check_before_start(config, comm))

    def begin() -> tuple[Path, int]:
        folder = new_run_folder(config.run_parent, config.name, config.exist_ok)
        return folder, resume.written_ns(folder)

    folder, written_ns = on_rank_0(comm, begin)
    return Run(config, folder, None, written_ns=written_ns)


def resumed_run(target: str, given: dict[str, Any], comm: Communicator) -> Run:
    """Go on with a run from its newest whole checkpoint, which rank 0 chooses and sends. *Collective.*

    Args:
        target: ``newest``, a run folder or a checkpoint file.
        given: flags on the command line; they must agree with the run's own, but for the place.
        comm: the ranks.
    """

    def load() -> Found:
        project = Path(given.get("project", TrainConfig.project))
        return _newest_state(resume.newest_run(project) if target == "newest" else Path(target))

    return _going_on(on_rank_0(comm, load), given, comm)


def found_or_new_run(given: dict[str, Any], comm: Communicator) -> Run:
    """Go on with the run in ``project/name``, or begin it in just that folder. *Collective.*

    So one command line starts a job and goes on with it whenever a scheduler starts it again.
    """
    config = together(comm, lambda: config_from_flags(given))
    folder = config.run_parent / config.name

    def load() -> Found | None:
        try:
            return _newest_state(folder)
        except resume.NothingWholeError as error:
            begun = any(path.exists() for path in resume.generations(folder / "weights"))
            log.log(logging.WARNING if begun else logging.INFO, "a new run in %s: %s", folder, error)
            return None

    found = on_rank_0(comm, load)
    return _going_on(found, given, comm) if found else new_run(replace(config, exist_ok=True), comm)


def _newest_state(target: Path) -> Found:
    """The state to go on from, the run's folder, and when the last checkpoint in it was written."""
    written_ns = resume.written_ns(target if target.is_dir() else target.parent.parent)
    state, chosen, passed_over = resume.load(target)
    for reason in passed_over:
        log.warning("passed over: %s", reason)
    log.info("resume from %s: epoch %d, step %d", chosen, state["epoch"] + 1, state["step"])
    return state, chosen.parent.parent, written_ns


def _going_on(found: Found, given: dict[str, Any], comm: Communicator) -> Run:
    state, folder, written_ns = found
    if "imgsz" in given:  # as the run has it
        given["imgsz"] = round_to_stride(given["imgsz"], max(zoo.spec_of(state["model_name"]).strides))
    config = together(comm, lambda: from_dict(settings_here(state, given)))
    together(comm, lambda: config.check_world(comm.size))
    return Run(config, folder, state, written_ns=written_ns)


def _check_before_start(config: TrainConfig, comm: Communicator) -> None:
    config.check_world(comm.size)
    if config.cfg:
        zoo.model_name(config.cfg)


def train(run: Run, comm: Communicator, stop: StopRequest | None = None) -> dict[str, Any]:
    """Train to the end and return what ``results.json`` holds. *Collective.*

    Raises:
        UserError: a mistake in the settings or the data, on all ranks alike.
        NonFiniteError: training diverged, on all ranks alike.
        UnwrittenError: the run is over, but not all of it is on the disk; on all ranks alike.
        StoppedError: ``stop`` was asked for on any rank; all ranks alike, and the checkpoint is written.
        TakenError: on rank 0: another job has taken the run over.
    """
    stop = stop or StopRequest()
    if run.elastic is None or run.state is None:  # else its last commit may be in memory only
        stop.alone_from_here(f"before the first step; {_kept(run)}")
    with run.lock.until_over(handed_on=run.elastic is not None):
        on_rank_0(comm, lambda: _take(run))
        if comm.rank != 0:
            run.lock.drop()
        return _trained(run, comm, stop)


def _take(run: Run) -> None:
    """Let no other job work on this run, and see that none did since this one looked."""
    run.lock.take(run.folder)
    if run.written_ns not in (None, resume.written_ns(run.folder)):
        raise UserError("another job has just trained this run", where=run.folder, fix="start this one again")


def _trained(run: Run, comm: Communicator, stop: StopRequest) -> dict[str, Any]:
    spec = together(comm, lambda: _spec(run))
    data = run_data(spec, run.config, run.elastic, comm)
    least_seconds = SECONDS_BETWEEN_SAVES if run.elastic else 0.0
    checkpointer = Checkpointer(run.folder / "weights", run.config.save_period, least_seconds)
    of_data = together(comm, lambda: _data_state(run, data))
    callbacks: list[Callback] = []
    if comm.rank == 0:
        callbacks += [run.lock, checkpointer, *_callbacks(run, alone=comm.size == 1)]
    trainer = build_trainer(run.config, data, comm, callbacks, run.state, stop)
    device = trainer.evaluator.precision.device
    trainer.about = {"data": of_data, "precision": precision_name(run.config.precision, device)}
    if comm.rank == 0 and not run.config.noplots:
        callbacks.append(_report_writer(run, trainer))
    if run.elastic is not None:
        run.elastic.attach(trainer)
    if comm.rank == 0:
        _try_config(run.folder, trainer.config)
    try:
        with arithmetic(run.config.precision, deterministic=run.config.deterministic):
            trainer.fit()
        checkpointer.wait()
        if comm.broadcast_object(checkpointer.nothing_owed):
            words = f"after the last step; --resume {run.folder} writes the results and the report"
            stop.alone_from_here(words)
        results = results_of(trainer)
        unwritten = _finish(run.folder, callbacks, results) if comm.rank == 0 else None
        if comm.rank == 0 and not (run.folder / "config.yaml").exists():
            _try_config(run.folder, trainer.config)
    except StoppedError:
        checkpointer.wait()
        raise _stopped(run, trainer, comm, checkpointer) from None
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
    if run.elastic is not None and run.elastic.digests is not None:  # it was handed on
        return said or now
    return require_same_data(said, now, changed=run.config.data_changed)


def _spec(run: Run) -> DataSpec:
    """The run's data file, read by its rules and for its classes."""
    if run.state is not None and not Path(run.config.data).exists():
        fix = f"say where it is now: --resume {run.folder} --data path/to/data.yaml"
        raise UserError("the data of the run is not there", where=run.config.data, fix=fix)
    spec = load_data_yaml(Path(run.config.data), label_rules(run.config, run.state))
    if run.state is None:
        return spec
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
    return StoppedError(f"after step {trainer.progress.step}, {words}", saved=saved)


def _older(folder: Path) -> str:
    """Which checkpoint there is instead of one that could not be written."""
    try:
        state, path, _ = resume.load(folder)
    except UserError as error:
        return f"and there is {error}"
    return f"{path} is of step {state['step']}; mend the disk and go on from there with --resume {folder}"


def _finish(folder: Path, callbacks: Sequence[Callback], results: dict[str, Any]) -> list[str]:
    """Write ``results.json`` and end the callbacks; what must last and could not be written."""
    refused = _refused_results(folder, results)
    unwritten = []
    for callback in callbacks:
        try:
            callback.on_end(results)
        except UnwrittenError as error:
            unwritten.append(str(error))
    if refused or unwritten:  # the disk may have been mended while the checkpoint was tried again
        refused = _refused_results(folder, {**results, "exit": 1 if unwritten else 0})
    return [*unwritten, *refused]


def _refused_results(folder: Path, results: dict[str, Any]) -> list[str]:
    try:
        write_json(folder / "results.json", results)
    except OSError as error:
        return [f"{folder / 'results.json'} could not be written ({error.strerror or error})"]
    return []


def _try_config(folder: Path, config: TrainConfig) -> None:
    """Write ``config.yaml``, which is for people: a resumed run has its settings from the checkpoint."""
    try:
        write_config(folder, config)
    except OSError as error:
        log.warning("%s: %s; training goes on", folder / "config.yaml", error.strerror or error)


def elastic_run(start: Callable[[], Run], kept: Kept, comm: Communicator) -> Run:
    """The run that the ranks share, from the newest commit; at first, what ``start`` makes. *Collective.*

    Rank 0 may be another process than before, on another host: the folder is made there where it is missing.
    """
    content = kept.content or _first_content(start(), kept, comm)
    saved = content["state"]
    if saved:
        log.info("%d ranks go on from step %d of epoch %d", comm.size, saved["step"], saved["epoch"] + 1)
    if comm.rank == 0:
        (Path(content["folder"]) / "weights").mkdir(parents=True, exist_ok=True)

    def renew(**parts: Any) -> None:
        now = {**(kept.content or content), **parts}
        kept.keep(now, _order(now))

    def keep_data(data: Data) -> None:
        kept.local = data
        renew(data=data.digests)

    def keep(state: dict[str, Any]) -> None:
        renew(state=copied(state))
        kept.check_hosts()

    kept.lock = kept.lock or RunLock(content["lock"])
    mine = kept.local if kept.local and kept.local.digests == content["data"] else None
    elastic = Elastic(content["ranks"], keep, content["data"], mine, keep_data)
    return Run(from_dict(content["config"]), Path(content["folder"]), saved, elastic, kept.lock)


def _first_content(run: Run, kept: Kept, comm: Communicator) -> dict[str, Any]:
    content = {
        "lock": comm.broadcast_object(run.lock.token),
        "config": to_dict(run.config),
        "folder": str(run.folder),
        "ranks": comm.size,
        "state": run.state,
        "data": None,
    }
    kept.keep(content, _order(content))
    return content


def _order(content: dict[str, Any]) -> tuple[int, int, int]:
    """How new it is. Of the same step, what knows the data is newer: or only some ranks would scan it."""
    state = content["state"] or {"step": 0, "epoch": 0}
    return state["step"], state["epoch"], int(content["data"] is not None)


def _callbacks(run: Run, *, alone: bool) -> list[Callback]:
    callbacks: list[Callback] = [StepLog(run.folder), EpochLog(run.folder), ProgressDisplay(alone=alone)]
    if tensorboard.available():
        callbacks.append(tensorboard.TensorBoard(run.folder))
    return callbacks


def _report_writer(run: Run, trainer: Trainer) -> ReportWriter:
    return ReportWriter(
        run.folder,
        first_batch=trainer.sampler.rank_keys(epoch=0, batch=0),
        transform=trainer.transform,
        validation=trainer.evaluator.annotations,
        model=trainer.ema.model,
        imgsz=trainer.config.imgsz,
        precision=trainer.evaluator.precision,
    )


def results_of(trainer: Trainer) -> dict[str, Any]:
    """The content of ``results.json``."""
    progress, model = trainer.progress, trainer.stepper.model
    terms = trainer.stepper.criterion.terms
    return {
        "model": model.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "world_size": trainer.comm.size,
        "global_batch": trainer.config.batch_size,
        "epochs": progress.epoch,
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        "seed": trainer.config.seed,
        "metrics": trainer.metrics,
        "best_epoch": trainer.early_stopping.best_epoch,
        "train": {f"{term}_loss": progress.last_losses.get(term, 0.0) for term in terms},
        "images_per_s": progress.images / progress.wall_s if progress.wall_s else 0.0,
        "wall_s": progress.wall_s,
        "exit": 0,
        "versions": versions(),
    }
