"""Score a checkpoint on a data set, on any number of ranks: ``horovod-yolo val``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from horovod_yolo.assembly.build import (
    build_evaluation_loader,
    build_loss,
    load_weights,
)
from horovod_yolo.assembly.data import annotation_folder
from horovod_yolo.assembly.device import agreed_device, arithmetic, choose_precision, pinned
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.config.schema import TrainConfig, from_dict
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Detections
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.evaluation.evaluator import Evaluation, Evaluator, as_arrays
from horovod_yolo.metrics.coco_results import write_results
from horovod_yolo.models.head import Detector
from horovod_yolo.models.zoo import build_model


@dataclass(frozen=True, kw_only=True)
class ValOptions:
    """Flags of ``horovod-yolo val``; names and defaults are YOLOv5's."""

    weights: str
    data: str = ""
    task: str = "val"
    imgsz: int = 0
    batch_size: int = 32
    conf_thres: float = 0.001
    iou_thres: float = 0.6
    max_det: int = 300
    device: str = ""
    workers: int = 4
    precision: str = "auto"
    cache_dir: str = ""
    save_json: str = ""

    def __post_init__(self) -> None:
        for name, least in (("imgsz", 0), ("batch_size", 1), ("max_det", 1), ("workers", 0)):
            if getattr(self, name) < least:
                self._refuse(name, f"{least} or more")
        for name in ("conf_thres", "iou_thres"):
            if not 0 <= getattr(self, name) <= 1:
                self._refuse(name, "between 0 and 1")

    def _refuse(self, name: str, rule: str) -> NoReturn:
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} is {getattr(self, name)!r}", fix=f"it must be {rule}")


def load_detector(path: Path) -> tuple[Detector, TrainConfig, tuple[str, ...]]:
    """A trained model with its averaged weights, the settings it was trained with, and its classes.

    Raises:
        UserError: the checkpoint is missing, damaged or not ours.
    """
    state = load_weights(path)
    names = tuple(state["names"])
    model = build_model(state["model_name"], len(names))
    model.load_state_dict(state["ema"]["weights"])
    return model.eval(), from_dict(state["config"]), names


def validate(options: ValOptions, comm: Communicator) -> tuple[Evaluation, tuple[str, ...]]:
    """Score a checkpoint. *Collective.*

    Returns:
        The numbers and the class names.

    Raises:
        UserError: on all ranks alike.
    """
    model, trained, names = together(comm, lambda: load_detector(Path(options.weights)))
    data = options.data or trained.data
    spec = together(comm, lambda: load_data_yaml(Path(data)))
    together(comm, lambda: _require_classes(options, data, names, spec.names))
    together(comm, lambda: _require_folder(options.save_json if comm.rank == 0 else ""))
    device = agreed_device(options.device, comm)
    annotations = shared_annotations(spec, options.task, comm, annotation_folder(options.cache_dir))
    imgsz = options.imgsz or trained.imgsz
    loader = build_evaluation_loader(
        annotations,
        comm,
        imgsz=imgsz,
        stride=max(model.strides),
        batch=options.batch_size,
        workers=options.workers,
        pin_memory=pinned(device),
    )
    precision = choose_precision(options.precision, device)
    evaluator = Evaluator(
        annotations=annotations,
        loader=loader,
        loss=build_loss(trained.hyp, trained, model),
        comm=comm,
        precision=precision,
        conf_threshold=options.conf_thres,
        iou_threshold=options.iou_thres,
        max_detections=options.max_det,
    )
    collected: dict[int, Detections] | None = {} if options.save_json else None
    try:
        with arithmetic(options.precision):
            evaluation = evaluator.run(model.to(device, precision.of_weights), collected)
    finally:
        loader.close()
    if collected is not None:
        _save_detections(options.save_json, collected, annotations, comm)
    return evaluation, names


def _require_classes(
    options: ValOptions, data: str, trained: tuple[str, ...], given: tuple[str, ...]
) -> None:
    if len(trained) != len(given):
        raise UserError(
            f"the data has {len(given)} classes, {options.weights} was trained on {len(trained)}",
            where=data,
            fix="use data with the classes of the checkpoint",
        )


def _require_folder(file: str) -> None:
    folder = Path(file).parent
    if file and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(
            "no folder to write into", where=f"--save-json {file}", fix="make it, or name another"
        )


def _save_detections(
    path: str, mine: dict[int, Detections], annotations: Annotations, comm: Communicator
) -> None:
    gathered = comm.allgather_object({i: as_arrays(found) for i, found in mine.items()})
    if comm.rank == 0:
        everything = {i: found for part in gathered for i, found in part.items()}
        images = ((annotations.image_id(i), everything[i]) for i in sorted(everything))
        write_results(Path(path), images, list(range(len(annotations.names))))
