"""The file of ``--weights``: a checkpoint of ours or another trainer's file. Rank 0 reads it for all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.published import published_checkpoint, published_model
from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.state import inference_state
from horovod_yolo.core.class_names import listed
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.agreement import on_rank_0
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.export.formats import exported_kind
from horovod_yolo.families import zoo

log = logging.getLogger(__name__)


def load_weights(path: Path, cfg: str = "") -> dict[str, Any]:
    """A checkpoint to take weights from: the content of ``best.pt``.

    Args:
        path: of a ``best.pt`` or ``last.pt`` of ours, or of another trainer's file.
        cfg: the model that the user named, if any.

    Raises:
        UserError: it is missing, damaged or unknown, or of another model than was named.
    """
    _require_there(path)
    if not store.is_ours(path):
        return published_checkpoint(path, cfg)
    state = inference_state(_own(path))
    _require_model(str(state["model_name"]), cfg, path)
    return state


def shared_weights(path: Path, comm: Communicator, cfg: str = "") -> dict[str, Any]:
    """`load_weights` of rank 0, for all: the others need not have the file. *Collective.*"""
    return on_rank_0(comm, lambda: load_weights(path, cfg))


def model_of_weights(path: Path, cfg: str = "") -> str:
    """The name of the model whose weights a file holds. Arguments and errors as `load_weights`."""
    _require_there(path)
    if not store.is_ours(path):
        return published_model(path, cfg).name
    name = str(_own(path)["model_name"])
    _require_model(name, cfg, path)
    return name


def with_model(given: dict[str, Any], comm: Communicator) -> dict[str, Any]:
    """Flags of a new run with ``cfg``, also where only ``weights`` tell which model it is. *Collective.*

    Raises:
        UserError: as `load_weights`: before there is a run folder, and before the data is read.
    """
    if not given.get("weights"):
        return given
    cfg = str(given.get("cfg", ""))
    name = on_rank_0(comm, lambda: model_of_weights(Path(given["weights"]), cfg))
    return {**given, "cfg": cfg or name}


def with_names(state: dict[str, Any], names: Sequence[str], where: object) -> dict[str, Any]:
    """A checkpoint that does not name its classes with those of the data, where they are as many."""
    if state.get("names_known", True) or len(names) != len(state["names"]):
        return state
    log.warning("weights: %s does not name its classes: they are taken to be %s", where, listed(names, 5))
    return {**state, "names": [*names], "names_known": True}


def import_weights(
    source: Path, target: Path, comm: Communicator, cfg: str = "", data: str = ""
) -> tuple[str, int]:
    """Write another trainer's weights as a checkpoint of ours, like a ``best.pt``. *Collective.*

    Args:
        source: their file.
        target: ours, which must not be there yet.
        comm: the ranks, of which rank 0 does it.
        cfg: the model, where the file may be of several.
        data: a data.yaml, for a file that does not name its classes.

    Returns:
        Which model it is, and how many classes it knows.

    Raises:
        UserError: as `load_weights`, or the target cannot be written.
    """
    data = data_here(data, comm)
    return on_rank_0(comm, lambda: _imported(source, target, cfg, data))


def _imported(source: Path, target: Path, cfg: str, data: str) -> tuple[str, int]:
    if store.is_ours(source):
        raise UserError("this is a checkpoint of horovod_yolo already", where=source, fix="use it as it is")
    if target.exists():
        raise UserError("there is such a file already", where=target, fix="remove it or name another")
    state = load_weights(source, cfg)
    if data:
        state = with_names(state, load_data_yaml(Path(data)).names, source)
    try:
        store.write(target, store.serialise(state))
    except OSError as error:
        raise UserError(error.strerror or str(error), where=target, fix="name another file") from None
    return str(state["model_name"]), len(state["names"])


def _own(path: Path) -> dict[str, Any]:
    try:
        return store.read(path)
    except store.CheckpointError as error:
        fix = "use another checkpoint of the run: best.pt, last.pt, last.1.pt or last.2.pt"
        raise UserError(error.reason, where=path, fix=fix) from None


def _require_model(name: str, cfg: str, path: Path) -> None:
    if cfg and name != zoo.model_name(cfg):
        fix = f"leave --cfg out, use --cfg {name} or other weights"
        raise UserError(f"weights are of {name}, not of {cfg}", where=path, fix=fix)


def _require_there(path: Path) -> None:
    if exported_kind(path):
        fix = "use the checkpoint; val and predict take exported files"
        raise UserError("an exported file has no weights to begin with", where=path, fix=fix)
    if path.exists():
        return
    if path.suffix:
        known = f" (published weights of {path.stem})" if path.stem in zoo.model_names() else ""
        fix = f"nothing is downloaded: get {path.name}{known} and give its path"
    else:
        fix = f"weights are a file, such as {path.name}.pt; for a new model leave --weights out"
    raise UserError(f"No such file; looked for {path.absolute()}", where=path, fix=fix)
