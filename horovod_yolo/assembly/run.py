"""A training run to do, new or resumed: its config, its folder and the state it goes on from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from horovod_yolo.assembly.anew import EarlierRanks, with_commits
from horovod_yolo.assembly.data import KnownData
from horovod_yolo.assembly.given_weights import with_model
from horovod_yolo.assembly.input_size import round_to_stride
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.resuming import PATHS, absolute_paths, settings_here
from horovod_yolo.assembly.run_folder import new_run_folder
from horovod_yolo.assembly.run_lock import RunLock
from horovod_yolo.assembly.settings import kept_settings, settings_of
from horovod_yolo.checkpoint import resume
from horovod_yolo.config.load import config_from_flags
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.data.own_pipeline import load_pipeline
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.families import zoo
from horovod_yolo.training.freezing import frozen_parameters

log = logging.getLogger(__name__)
Found = tuple[dict[str, Any], Path, int]


@dataclass(frozen=True)
class Elastic:
    """A run's part in a changing world."""

    first_size: int  # ranks when it began: a rank's memory is known to hold the slices of then
    keep: Callable[[dict[str, Any]], None]  # gets each commit, on every rank; may raise to change the world
    known_data: KnownData


@dataclass(frozen=True)
class Run:
    """What to do and where: a config, its folder, and the state to go on from."""

    config: TrainConfig
    folder: Path
    state: dict[str, Any] | None
    elastic: Elastic | None = None
    judge: Callable[[int, float], bool] | None = None  # of a search: see `Trainer`
    shown: bool = True  # whether rank 0 shows how it gets on
    lock: RunLock = field(default_factory=RunLock)
    written_ns: int | None = None  # its last checkpoint, when this job looked for it; None: it is not known


def start_run(target: str, given: dict[str, Any], comm: Communicator) -> Run:
    """The run that the command line asks for, or that earlier ranks of this job have begun. *Collective.*

    Args:
        target: of ``--resume``: empty for a new run, ``auto`` for that of this name, new or not.
        given: the other flags that were given.
        comm: the ranks.
    """
    if given.get("data"):
        given = {**given, "data": data_here(given["data"], comm)}
    earlier = EarlierRanks(comm)
    if earlier.folder is not None:
        run = run_in_folder(earlier.folder, given, comm)
    elif target == "auto":
        config = together(comm, lambda: config_from_flags(given))
        run = run_in_folder(config.run_parent / config.name, given, comm)
    elif target:
        run = resumed_run(target, given, comm)
    else:
        run = begin_run(given, comm)
    earlier.tell(run.folder)
    return run


def run_of_script(given: dict[str, Any], config: TrainConfig, comm: Communicator) -> Run:
    """A new run, or what earlier ranks of this job have begun at this place of a script. *Collective.*

    Args:
        given: the flags that were given.
        config: what follows from them.
        comm: the ranks.
    """
    earlier = EarlierRanks(comm)
    run = run_in_folder(earlier.folder, given, comm) if earlier.folder else new_run(config, comm)
    earlier.tell(run.folder)
    return run


def begin_run(given: dict[str, Any], comm: Communicator) -> Run:
    """A new run that flags ask for. *Collective.*"""
    given = with_model(with_commits(given), comm)
    return new_run(together(comm, lambda: settings_of(given)), comm)


def new_run(config: TrainConfig, comm: Communicator) -> Run:
    """A run of its own, in a folder that rank 0 makes. *Collective.*"""
    config = replace(config, **absolute_paths({name: getattr(config, name) for name in PATHS}))
    if file := config.albumentations:  # what it says goes with the run, as hyperparameters do
        pipeline = on_rank_0(comm, lambda: load_pipeline(Path(file)).content)
        config = replace(config, albumentations=pipeline)
    together(comm, lambda: _check_before_start(config, comm))
    if comm.rank == 0 and config.freeze != TrainConfig.freeze and not config.weights:
        log.warning("--freeze without --weights: what is frozen stays as random as it begins")

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


def run_in_folder(folder: Path, given: dict[str, Any], comm: Communicator) -> Run:
    """Go on with the run in a folder, or begin it in just that folder. *Collective.*

    So one command line starts a job and goes on with it whenever a scheduler starts it again.
    """

    def load() -> Found | None:
        try:
            return _newest_state(folder)
        except resume.NothingWholeError as error:
            begun = any(path.exists() for path in resume.generations(folder / "weights"))
            log.log(logging.WARNING if begun else logging.INFO, "a new run in %s: %s", folder, error)
            return None

    found = on_rank_0(comm, load)
    if found:
        return _going_on(found, given, comm)
    return begin_run({**given, "project": str(folder.parent), "name": folder.name, "exist_ok": True}, comm)


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
    config = together(comm, lambda: kept_settings(settings_here(state, given), state["model_name"]))
    together(comm, lambda: config.check_world(comm.size))
    return Run(config, folder, state, written_ns=written_ns)


def _check_before_start(config: TrainConfig, comm: Communicator) -> None:
    config.check_world(comm.size)
    if config.cfg:
        zoo.model_name(config.cfg)
    if config.cfg and config.freeze != TrainConfig.freeze:
        with torch.device("meta"):  # its names are enough
            frozen_parameters(zoo.build_model(config.cfg, 1), config.freeze)
