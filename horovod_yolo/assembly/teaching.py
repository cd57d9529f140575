"""``--teacher``: another model whose answers a run learns from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from horovod_yolo.assembly.given_weights import shared_weights, with_names
from horovod_yolo.assembly.model import as_trained
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.class_names import FIX, find_names, listed, without_own
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Batch, Decoded, TaughtTargets
from horovod_yolo.distributed.agreement import checksum
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.families import zoo
from horovod_yolo.losses.distillation import DistillingCriterion
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.teacher import answers_of
from horovod_yolo.training.scaling import scaled
from horovod_yolo.training.step import Stepper

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """A trained model, and where the student's classes are among its own."""

    model: Detector
    places: tuple[int, ...]
    precision: Precision
    stride: int  # of the student, to multiples of which multi-scale goes

    @torch.no_grad()
    def __call__(self, batch: Batch, scale: float) -> TaughtTargets:
        """The targets of a batch with what the teacher says of its images, as the student sees them."""
        batch = scaled(batch, scale, self.stride)
        of = batch.targets
        if not len(batch):
            nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, len(self.places))
            return TaughtTargets(of.image, of.classes, of.boxes_xywhn, *nothing)
        with self.precision.autocast():
            predictions = self.model(self.precision.images(batch))
        decoded = self.model.head.decode(predictions)
        of_ours = Decoded(decoded.boxes_xyxy, decoded.scores[:, :, list(self.places)])
        answers = answers_of(of_ours, finds_once=self.model.head.finds_once)
        return TaughtTargets(of.image, of.classes, of.boxes_xywhn, *answers)


def teach(
    stepper: Stepper,
    config: TrainConfig,
    names: Sequence[str],
    resumed: Mapping[str, Any] | None,
    comm: Communicator,
) -> dict[str, Any]:
    """Let a run learn from the teacher too, where it has one. *Collective.*

    Returns:
        What checkpoints say of it.

    Raises:
        UserError: the file is not there or damaged, does not know a class of the data, is of a model that
            wants other sizes, or is another teacher than the run began with; on all ranks alike.
    """
    if not config.teacher:
        return {}
    state = shared_weights(Path(config.teacher), comm)
    state = with_names(state, names, config.teacher)
    model, _, theirs = as_trained(state)
    digest = checksum(model.state_dict())
    if resumed is not None and resumed["teacher"]["digest"] != digest:
        where, fix = f"--teacher {config.teacher}", "name the file that the run began with"
        raise UserError("this is another teacher than the run's", where=where, fix=fix)
    places = _places(theirs, names, config)
    stride = max(stepper.model.strides)
    _require_stride(model, stride, config)
    precision = stepper.precision
    model.to(precision.device, precision.of_weights).requires_grad_(False)
    student, family = stepper.model, zoo.family_of(stepper.model.name)
    taught = DistillingCriterion(stepper.criterion, student.head.decode_each, family.teacher_gains(config))
    stepper.learn_from(Teacher(model, places, precision, stride), taught)
    log.info("--teacher: %s of %s teaches with a gain of %g", model.name, config.teacher, config.hyp.distill)
    return {"teacher": {"model": model.name, "digest": digest}}


def _places(theirs: Sequence[str], ours: Sequence[str], config: TrainConfig) -> tuple[int, ...]:
    """Where each of our classes is among the teacher's, by name."""
    found = find_names(theirs, ours, without_own(dict(config.class_map), ours))
    if found.absent:
        what = f"the teacher does not know {listed(found.absent)}; it knows {listed(theirs)}"
        raise UserError(what, where=f"--teacher {config.teacher}", fix=FIX)
    return tuple(found.ids.index(place) for place in range(len(ours)))


def _require_stride(model: Detector, stride: int, config: TrainConfig) -> None:
    theirs = max(model.strides)
    if config.imgsz % theirs or (theirs > stride and (config.multi_scale or config.rect)):
        what = f"{model.name} takes sizes in steps of {theirs} pixels, which --imgsz {config.imgsz} is not"
        if config.imgsz % theirs == 0:
            what = f"{model.name} takes sizes in steps of {theirs} pixels, {stride} here with varying sizes"
        raise UserError(
            what,
            where=f"--teacher {config.teacher}",
            fix=f"give a multiple of {theirs}, without --rect and --multi-scale",
        )
