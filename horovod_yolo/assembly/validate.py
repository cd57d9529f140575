"""Score a checkpoint on a data set, on any number of ranks: ``horovod-yolo val``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from horovod_yolo.assembly.build import (
    build_evaluation_loader,
)
from horovod_yolo.assembly.data import annotation_folder, say_what_counts
from horovod_yolo.assembly.device import agreed_device, arithmetic, choose_precision, pinned
from horovod_yolo.assembly.given_weights import shared_weights, with_names
from horovod_yolo.assembly.model import Trained, as_trained, build_criterion
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.config.class_map import ClassMap
from horovod_yolo.config.ranges import check_ranges
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Detections
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.spec import DataSpec, load_data_yaml
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.evaluation.evaluator import Evaluator, as_arrays
from horovod_yolo.families.zoo import recipe_of
from horovod_yolo.metrics.coco_results import write_results
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.models.suppression import Thresholds


@dataclass(frozen=True, kw_only=True)
class ValOptions:
    """Flags of ``horovod-yolo val``; names and defaults are YOLOv5's."""

    weights: str
    data: str = ""
    task: str = "val"
    head: str = ""
    imgsz: int = 0
    rect: bool = True
    batch_size: int = 32
    conf_thres: float = 0.001
    iou_thres: float | None = None  # as the model's family has it
    max_det: int = 300
    device: str = ""
    workers: int = 4
    precision: str = "auto"
    class_map: ClassMap = ()
    skip_bad_classes: bool = False
    cache_dir: str = ""
    save_json: str = ""

    def __post_init__(self) -> None:
        least = {"imgsz": 0, "batch_size": 1, "max_det": 1, "workers": 0}
        check_ranges(self, least, ("conf_thres", "iou_thres"))

    def thresholds(self, usual_iou: float) -> Thresholds:
        """What counts as a detection, where boxes of a class may usually overlap so far."""
        iou = usual_iou if self.iou_thres is None else self.iou_thres
        return Thresholds(confidence=self.conf_thres, iou=iou, most=self.max_det)


def validate(options: ValOptions, comm: Communicator) -> tuple[Evaluation, tuple[str, ...]]:
    """Score a checkpoint. *Collective.*

    Returns:
        The numbers and the class names.

    Raises:
        UserError: on all ranks alike.
    """
    state = shared_weights(Path(options.weights), comm)
    data = together(comm, lambda: _data_file(options, state))
    model, trained, names = together(comm, lambda: _trained(options, data, state))
    spec = together(comm, lambda: _spec(options, data, trained, names))
    together(comm, lambda: _require_folder(options.save_json if comm.rank == 0 else ""))
    device = agreed_device(options.device, comm)
    annotations = shared_annotations(spec, options.task, comm, annotation_folder(options.cache_dir))
    if comm.rank == 0:
        say_what_counts(annotations, options.max_det)
    imgsz, recipe = options.imgsz or trained.imgsz, recipe_of(model.name)
    loader = build_evaluation_loader(
        annotations,
        comm,
        imgsz=imgsz,
        stride=max(model.strides),
        batch=options.batch_size,
        workers=options.workers,
        pin_memory=pinned(device),
        rect=options.rect,
        antialias=recipe.averages_areas,
    )
    precision = choose_precision(options.precision, device)
    evaluator = Evaluator(
        annotations=annotations,
        loader=loader,
        criterion=build_criterion(model, trained),
        comm=comm,
        precision=precision,
        rect=options.rect,
        thresholds=options.thresholds(recipe.iou_of_validation),
        fitness_weights=recipe.fitness,
    )
    collected: dict[int, Detections] | None = {} if options.save_json else None
    try:
        with arithmetic(options.precision):
            evaluation = evaluator.run(model.to(device, precision.of_weights), collected)
    finally:
        loader.close()
    if collected is not None:
        _save_detections(options.save_json, collected, annotations, spec, comm)
    return evaluation, names


def _data_file(options: ValOptions, state: dict[str, Any]) -> str:
    if not (data := options.data or str(state["config"]["data"])):
        fix = "name a data set: --data path/to/data.yaml"
        raise UserError("the weights do not say what they were trained on", where=options.weights, fix=fix)
    return data


def _trained(options: ValOptions, data: str, state: dict[str, Any]) -> Trained:
    return as_trained(with_names(state, load_data_yaml(Path(data)).names, options.weights), options.head)


def _spec(options: ValOptions, data: str, trained: TrainConfig, names: tuple[str, ...]) -> DataSpec:
    """The data, with labels numbered as the checkpoint's classes are."""
    rules = LabelRules(options.class_map or trained.class_map, options.skip_bad_classes)
    meeting = f"the classes of the data and of {options.weights}"
    return load_data_yaml(Path(data), rules).for_classes(names, meeting)


def _require_folder(file: str) -> None:
    folder = Path(file).parent
    if file and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(
            "no folder to write into", where=f"--save-json {file}", fix="make it, or name another"
        )


def _save_detections(
    path: str, mine: dict[int, Detections], annotations: Annotations, spec: DataSpec, comm: Communicator
) -> None:
    """Write them under the class numbers of data.yaml; a class that is not in there has no number."""
    gathered = comm.allgather_object({i: as_arrays(found) for i, found in mine.items()})
    if comm.rank == 0:
        numbers = spec.class_numbers
        everything = {i: found for shard in gathered for i, found in shard.items()}
        known = np.array([number is not None for number in numbers])
        kept = {i: found.only(known[found.classes]) for i, found in everything.items()}
        images = ((annotations.image_id(i), kept[i]) for i in sorted(kept))
        write_results(Path(path), images, [-1 if number is None else number for number in numbers])
