"""``--weights``, whatever they are, made ready to look: checkpoints, published weights, exported files."""

from __future__ import annotations

from pathlib import Path

import torch

from horovod_yolo.assembly.device import agreed_device, choose_device
from horovod_yolo.assembly.exported import Asked, open_exported, shared_exported
from horovod_yolo.assembly.given_weights import load_weights, shared_weights
from horovod_yolo.assembly.input_size import round_to_stride
from horovod_yolo.assembly.looking import Looking, Ready, make_ready, require_classes
from horovod_yolo.assembly.model import as_trained
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.named import found
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.export.formats import read_exported
from horovod_yolo.export.running import ExportedFile
from horovod_yolo.prediction.predict import Sizes


def shared_ready(
    path: Path, how: Looking, comm: Communicator, device: str = "", head: str = "", data: str = ""
) -> Ready:
    """Weights that rank 0 reads, ready on each rank. *Collective.*

    Args:
        path: of the weights.
        how: to look.
        comm: the ranks.
        device: that was asked for; empty: what there is.
        head: of a model with several the one that detects; empty: as trained or exported.
        data: a data.yaml, whose names an exported file without names has.

    Raises:
        UserError: on all ranks alike: the weights cannot be used, or not so.
    """
    if file := shared_exported(path, comm):
        data = data_here(data, comm)
        chosen = agreed_device(device, comm)
        return together(comm, lambda: _exported(file, chosen, how, device, head, data))
    together(comm, lambda: _require_no_data(data, path))
    weights = shared_weights(path, comm)
    trained = together(comm, lambda: as_trained(weights, head))
    chosen = agreed_device(device, comm)
    return together(comm, lambda: make_ready(trained, chosen, how))


def ready_here(
    path: Path, how: Looking, local_rank: int, device: str = "", head: str = "", data: str = ""
) -> Ready:
    """`shared_ready` of this process alone, which is one of its host's."""
    if file := read_exported(path):
        return _exported(file, choose_device(device, local_rank), how, device, head, found(data))
    _require_no_data(data, path)
    return make_ready(as_trained(load_weights(path), head), choose_device(device, local_rank), how)


def _exported(
    file: ExportedFile, device: torch.device, how: Looking, wanted: str, head: str, data: str
) -> Ready:
    for flag, given in (("--augment", how.augment), ("--half", how.half)):
        if given:
            fix = "leave it out, or use the checkpoint"
            raise UserError(f"{flag} and an exported file", where=file.path, fix=fix)
    asked = Asked(device=wanted, data=data, imgsz=how.imgsz, head=head, precision=how.precision)
    opened = open_exported(file, device, asked)
    about = opened.about
    require_classes(how.classes, about.names)
    side = max(opened.shape or (round_to_stride(how.imgsz or max(about.imgsz), about.stride),))
    thresholds = how.thresholds_for(opened.recipe.iou_of_prediction)
    opened.say_suppression(thresholds, asked=how.iou is not None)
    names = dict(enumerate(about.names))
    sizes = Sizes(side, how.rect, how.batch, opened.shape)
    return Ready(opened.finder(thresholds, how.classes), names, sizes)


def _require_no_data(data: str, path: Path) -> None:
    if data:
        fix = "leave it out: the weights know their classes"
        raise UserError("--data is for exported files without names", where=path, fix=fix)
