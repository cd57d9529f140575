"""Score a checkpoint on a data set, on any number of ranks: ``horovod-yolo val``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from horovod_yolo.assembly.build import build_evaluation_loader
from horovod_yolo.assembly.data import annotation_folder, say_what_counts
from horovod_yolo.assembly.device import agreed_device, arithmetic, choose_precision, pinned
from horovod_yolo.assembly.exported import Asked, open_exported, shared_exported
from horovod_yolo.assembly.given_weights import shared_weights, with_names
from horovod_yolo.assembly.model import Trained, as_trained, build_criterion
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.config.class_map import ClassMap
from horovod_yolo.config.ranges import check_ranges
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.slices import Slices
from horovod_yolo.core.types import Detections
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.listing import require_mapped
from horovod_yolo.data.loader import Loader
from horovod_yolo.data.spec import DataSpec, load_data_yaml
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.evaluation.evaluator import Evaluator, as_arrays
from horovod_yolo.evaluation.scoring import Scoring
from horovod_yolo.export.running import ExportedFile
from horovod_yolo.families.zoo import recipe_of
from horovod_yolo.metrics.coco_results import write_results
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.models.suppression import Thresholds

SPLITS = ("train", "val", "test")


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
    slices: int = 0  # of each batch; 0: as many as ranks
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
        least = {"imgsz": 0, "batch_size": 1, "max_det": 1, "workers": 0, "slices": 0}
        check_ranges(self, least, ("conf_thres", "iou_thres"))
        if self.slices > self.batch_size:
            raise UserError(
                f"--slices is {self.slices}", fix=f"it must be up to --batch-size, {self.batch_size}"
            )
        if self.task not in SPLITS:
            raise UserError(f"task is {self.task!r}", fix=f"take one of {', '.join(SPLITS)}")

    def thresholds(self, usual_iou: float) -> Thresholds:
        """What counts as a detection, where boxes of a class may usually overlap so far."""
        iou = usual_iou if self.iou_thres is None else self.iou_thres
        return Thresholds(confidence=self.conf_thres, iou=iou, most=self.max_det)


class _Score(Protocol):
    def __call__(
        self, annotations: Annotations, loader: Loader, collected: dict[int, Detections] | None
    ) -> Evaluation:
        """*Collective.*"""


@dataclass(frozen=True)
class _Subject:
    """What is scored."""

    score: _Score
    names: tuple[str, ...]
    data: str
    class_map: ClassMap
    imgsz: int  # usual
    stride: int
    averages_areas: bool  # images that shrink
    shape: tuple[int, int] | None = None  # that inputs must have
    pinned: bool = False  # batches belong in page-locked memory


def validate(options: ValOptions, comm: Communicator) -> tuple[Evaluation, tuple[str, ...]]:
    """Score a checkpoint, or an exported file. *Collective.*

    Returns:
        The numbers and the class names.

    Raises:
        UserError: on all ranks alike.
    """
    options = replace(options, data=data_here(options.data, comm))
    file = shared_exported(Path(options.weights), comm)
    subject = _of_file(options, file, comm) if file else _of_checkpoint(options, comm)
    spec = together(comm, lambda: _spec(options, subject))
    together(comm, lambda: _require_folder(options.save_json if comm.rank == 0 else ""))
    annotations = shared_annotations(spec, options.task, comm, annotation_folder(options.cache_dir))
    if comm.rank == 0:
        say_what_counts(annotations, options.max_det)
    loader = build_evaluation_loader(
        annotations,
        comm,
        imgsz=options.imgsz or subject.imgsz,
        stride=subject.stride,
        batch=options.batch_size,
        workers=options.workers,
        pin_memory=subject.pinned,
        rect=options.rect,
        antialias=subject.averages_areas,
        shape=subject.shape,
        slices=Slices.even(options.slices or comm.size, comm.rank, comm.size),
    )
    collected: dict[int, Detections] | None = {} if options.save_json else None
    try:
        evaluation = subject.score(annotations, loader, collected)
    finally:
        loader.close()
    if collected is not None:
        _save_detections(options.save_json, collected, annotations, spec, comm)
    return evaluation, subject.names


def _of_checkpoint(options: ValOptions, comm: Communicator) -> _Subject:
    """*Collective.*"""
    state = shared_weights(Path(options.weights), comm)
    data = together(comm, lambda: _data_file(options, str(state["config"]["data"])))
    model, trained, names = together(comm, lambda: _trained(options, data, state))
    device = agreed_device(options.device, comm)
    precision = together(comm, lambda: choose_precision(options.precision, device))
    recipe = recipe_of(model.name)

    def score(
        annotations: Annotations, loader: Loader, collected: dict[int, Detections] | None
    ) -> Evaluation:
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
        with arithmetic(options.precision):
            return evaluator.run(model.to(device, precision.of_weights), collected)

    return _Subject(
        score,
        names,
        data,
        trained.class_map,
        trained.imgsz,
        max(model.strides),
        recipe.averages_areas,
        pinned=pinned(device),
    )


def _of_file(options: ValOptions, file: ExportedFile, comm: Communicator) -> _Subject:
    """*Collective.*"""
    device = agreed_device(options.device, comm)
    asked = Asked(
        device=options.device,
        data=options.data,
        imgsz=options.imgsz,
        head=options.head,
        precision=options.precision,
    )
    opened = together(comm, lambda: open_exported(file, device, asked))
    about, recipe = opened.about, opened.recipe
    thresholds = options.thresholds(recipe.iou_of_validation)
    data = together(comm, lambda: _data_file(options, about.data))
    if comm.rank == 0:
        opened.say_suppression(thresholds, asked=options.iou_thres is not None)

    def score(
        annotations: Annotations, loader: Loader, collected: dict[int, Detections] | None
    ) -> Evaluation:
        scoring = Scoring(
            annotations=annotations,
            loader=loader,
            comm=comm,
            rect=options.rect and opened.shape is None,
            most=options.max_det,
            fitness_weights=recipe.fitness,
        )
        return scoring.run(opened.finder(thresholds), about.head, collected)

    return _Subject(
        score,
        about.names,
        data,
        about.class_map,
        max(about.imgsz),
        about.stride,
        recipe.averages_areas,
        shape=opened.shape,
    )


def _data_file(options: ValOptions, trained_on: str) -> str:
    if not (data := options.data or trained_on):
        fix = "name a data set: --data path/to/data.yaml"
        raise UserError("the weights do not say what they were trained on", where=options.weights, fix=fix)
    return data


def _trained(options: ValOptions, data: str, state: dict[str, Any]) -> Trained:
    return as_trained(with_names(state, load_data_yaml(Path(data)).names, options.weights), options.head)


def _spec(options: ValOptions, subject: _Subject) -> DataSpec:
    """The data, with labels numbered as the classes of what is scored are."""
    rules = LabelRules(options.class_map or subject.class_map, options.skip_bad_classes)
    meeting = f"the classes of the data and of {options.weights}"
    spec = load_data_yaml(Path(subject.data), rules)
    if options.class_map:  # the run's may be about another set
        require_mapped(spec)
    return spec.for_classes(subject.names, meeting)


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
