"""What a family of models brings. To add one: a folder with a `Family` in it, and its line in the zoo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.losses.criterion import Criterion
from horovod_yolo.models.detector import Detector


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before it is built. A family may hold more in a subclass."""

    strides: tuple[int, ...]  # of its predictions, finest first


class Family(ABC):
    """Models that are trained, scored and decoded alike."""

    @property
    @abstractmethod
    def models(self) -> Mapping[str, ModelSpec]:
        """Its models by name."""

    @abstractmethod
    def build(self, name: str, num_classes: int) -> Detector:
        """One of `models` with weights drawn from torch's global generator (same seed, same weights)."""

    @abstractmethod
    def criterion(self, model: Detector, config: TrainConfig) -> Criterion[Any, Any]:
        """The loss of one of its models, as the settings want it. It may hold on to the model's head."""

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
