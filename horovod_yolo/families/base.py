"""What a family of models brings. To add one: a folder with a `Family` in it, and its line in the zoo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.config.hyperparameters import Hyp
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.losses.criterion import Criterion
from horovod_yolo.losses.distillation import TeacherGains
from horovod_yolo.models.detector import Detector

# Numbers in which a model differs from the one of its name; checkpoints keep them.
Variant = Mapping[str, int]
# Of the tensors of a published file, by its keys.
Shapes = Mapping[str, tuple[int, ...]]
AS_NAMED: Variant = MappingProxyType({})


@dataclass(frozen=True)
class Recognised:
    """Which model a published file holds: what `Family.build` needs to make one like it."""

    name: str
    num_classes: int
    variant: Variant = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before it is built. A family may hold more in a subclass."""

    strides: tuple[int, ...]  # of its predictions, finest first


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a family is trained and scored unless the user says otherwise.

    Attributes:
        hyp: its hyperparameters.
        run: flags of a run, by the names of `TrainConfig`, whose usual values are other ones here.
        fitness: weights of mAP50 and mAP50-95 in the number that tells the best epoch.
        iou_of_validation: by which boxes of a class may overlap.
        iou_of_prediction: the same for images that belong to no data set.
        augmentation: what `AugmentParams` holds beside hyperparameters, by its names, where it is otherwise.
        averages_areas: whether images that shrink for validation are averaged, not interpolated.
        least_warmup_batches: of a warm-up, where there is one.
        warms_up_in_last_epoch: whether a warm-up may reach into the last epoch.
    """

    hyp: type[Hyp] = Hyp
    run: Mapping[str, Any] = field(default_factory=dict)
    fitness: tuple[float, float] = (0.1, 0.9)
    iou_of_validation: float = 0.6
    iou_of_prediction: float = 0.45
    augmentation: Mapping[str, bool] = field(default_factory=dict)
    averages_areas: bool = True
    least_warmup_batches: int = 100
    warms_up_in_last_epoch: bool = True


class Family(ABC):
    """Models that are trained, scored and decoded alike."""

    name: ClassVar[str]
    recipe: ClassVar[Recipe] = Recipe()

    @property
    @abstractmethod
    def models(self) -> Mapping[str, ModelSpec]:
        """Its models by name."""

    @abstractmethod
    def build(self, name: str, num_classes: int, variant: Variant = AS_NAMED) -> Detector:
        """One of `models` with weights drawn from torch's global generator (same seed, same weights).

        Args:
            name: of the model.
            num_classes: at least one.
            variant: numbers in which it differs from what the name says, by names of the family's own. It
                is what `Detector.variant` then tells.
        """

    @abstractmethod
    def criterion(self, model: Detector, config: TrainConfig) -> Criterion[Any, Any]:
        """The loss of one of its models, as the settings want it. It may hold on to the model's head."""

    def teacher_gains(self, config: TrainConfig) -> TeacherGains:
        """Of the terms that a student of this family learns from a teacher, times ``distill``.

        By default those of the family's own terms, whose class losses are sums over the classes.
        """
        hyp = config.hyp
        box, cls = (getattr(hyp, name, 1.0) for name in ("box", "cls"))
        return TeacherGains(box * hyp.distill, cls * hyp.distill)

    def recognise(self, shapes: Shapes) -> Iterable[Recognised]:
        """The models of this family that a published file with these tensors may hold; by default none.

        A few keys are enough for a guess: the zoo compares every key and shape with those of the model.
        """
        return ()

    def is_untrained(self, key: str) -> bool:
        """Whether a tensor of published files is no trained value: it may be missing, and is not taken."""
        return False

    def fit_to_data(
        self, model: Detector, boxes_wh_px: NDArray[np.floating[Any]], config: TrainConfig
    ) -> None:
        """Change a new model to suit the data, before the first step; by default nothing.

        Called on every rank with the same data, and must do the same on each.

        Args:
            model: new, without weights of anybody's.
            boxes_wh_px: (N, 2) widths and heights of all training boxes, in pixels of the network's input.
            config: the run's settings.
        """
        return
