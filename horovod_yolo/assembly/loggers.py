"""What ``--log-to`` names: whether it can be used, and what rank 0 sends to it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from horovod_yolo.assembly.run import Run
from horovod_yolo.config.schema import NO_LOGGER, TrainConfig, to_dict
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.telemetry import mlflow_log, tensorboard, wandb_log
from horovod_yolo.telemetry.delivery import Delivery
from horovod_yolo.telemetry.logger import Logger
from horovod_yolo.telemetry.redaction import redacted

LOGGERS: Mapping[str, type[Logger]] = {
    tensorboard.NAME: tensorboard.TensorBoardLogger,
    mlflow_log.NAME: mlflow_log.MlflowLogger,
    wandb_log.NAME: wandb_log.WandbLogger,
}
Ids = dict[str, str]
UID = "uid"
LETTERS_OF_A_UID = 16


def _require_loggers(run: Run, comm: Communicator) -> None:
    """Raise where what ``--log-to`` names cannot be used. *Collective.*

    Of an elastic job any rank may become rank 0. One that comes later and lacks a package does not end it.
    """
    if run.elastic is None:
        on_rank_0(comm, lambda: _require(run.config))
    elif run.state is None:
        together(comm, lambda: _require(run.config))


def logger_ids_of(run: Run, comm: Communicator) -> Ids:
    """How loggers call the run, for its checkpoints: what is known so far. *Collective.*

    Returns:
        By the logger's name, and the run's own; empty where there is no logger that needs them.

    Raises:
        UserError: on all ranks alike: a package is missing, or it is not said where the server is.
    """
    _require_loggers(run, comm)
    uid = hashlib.sha256(comm.broadcast_object(run.lock.token).encode()).hexdigest()[:LETTERS_OF_A_UID]
    said = run.state.get("loggers", {}) if run.state is not None else {}
    names = [name for name in loggers_of(run.config) if name != tensorboard.NAME]
    return {UID: uid, **dict.fromkeys(names, ""), **said} if said or names else {}


def deliveries(run: Run, config: TrainConfig, ids: Ids) -> list[Delivery]:
    """What sends this run to the loggers, on rank 0."""
    settings = dict(_flat(to_dict(config)))
    uid = ids.get(UID, "")
    return [Delivery(LOGGERS[name](), run.folder, settings, uid, ids) for name in loggers_of(config)]


def loggers_of(config: TrainConfig) -> Sequence[str]:
    """Those that were asked for, without repetition; where none were, TensorBoard if it is installed."""
    if config.log_to:
        return [name for name in dict.fromkeys(config.log_to) if name != NO_LOGGER]
    return [tensorboard.NAME] if _is_installed(tensorboard.NAME) else []


def _is_installed(package: str) -> bool:
    """A folder without a module is none: wandb leaves one of its own name where it works."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def _require(config: TrainConfig) -> None:
    for name in loggers_of(config):
        if not _is_installed(name):
            what = f"--log-to {name} needs the package {name}, which is not installed"
            raise UserError(what, fix=f"pip install 'horovod_yolo[{name}]', or leave it out")
    if mlflow_log.NAME in config.log_to and not os.environ.get(mlflow_log.SERVER):
        fix = f"set {mlflow_log.SERVER}, such as http://host:5000, where rank 0 runs"
        raise UserError("--log-to mlflow: it is not said where the server is", fix=fix)
    if wandb_log.NAME in config.log_to:
        wandb_log.require_key()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float)):
            yield prefix + name, value
        else:
            text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield prefix + name, redacted(text)
