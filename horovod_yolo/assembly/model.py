"""Models of whatever family and their loss: new, with the weights of a checkpoint, or as trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from horovod_yolo.assembly.given_weights import load_weights
from horovod_yolo.assembly.settings import settings_of_state
from horovod_yolo.assembly.weights import transfer
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.boxes import xyxy_to_xywh
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.families import zoo
from horovod_yolo.losses.criterion import Criterion
from horovod_yolo.models.detector import Detector
from horovod_yolo.training.freezing import freeze

Trained = tuple[Detector, TrainConfig, tuple[str, ...]]  # averaged weights, settings, classes

log = logging.getLogger(__name__)


def new_model(config: TrainConfig, train: Annotations, weights: dict[str, Any] | None = None) -> Detector:
    """What a run begins with: a model with the weights of a checkpoint, or a random one fitted to the data.

    Raises:
        UserError: unknown model, weights of another one, or ``--freeze`` names what it has not.
    """
    torch.manual_seed(config.seed)
    if weights is None:
        model = zoo.build_model(config.cfg, len(train.names))
        zoo.family_of(model.name).fit_to_data(model, _boxes_wh_px(train, config.imgsz), config)
    else:
        model = zoo.model_of({**weights, "names": train.names})
        transfer(model, weights, config.weights, train.names, config.class_map)
    model.head.use(config.head)
    freeze(model, config.freeze)
    return model


def model_to_resume(state: dict[str, Any], config: TrainConfig) -> Detector:
    """The model of a training state, whose weights are still to be loaded."""
    torch.manual_seed(config.seed)
    model = zoo.model_of(state)
    model.head.use(config.head)
    freeze(model, config.freeze)
    return model


def trained_model(path: Path, head: str = "") -> Trained:
    """A trained model with its averaged weights, the settings it was trained with, and its classes.

    ``head``: of the model's heads the one that is to detect; empty: the one it was trained for.

    Raises:
        UserError: the file is missing, damaged or unknown, or the model has no such head.
    """
    return as_trained(load_weights(path), head)


def as_trained(state: dict[str, Any], head: str = "") -> Trained:
    """`trained_model` of the content of a checkpoint."""
    model = zoo.model_of(state)
    model.load_state_dict(state["ema"]["weights"])
    config = settings_of_state(state)
    model.head.use(head or config.head)
    return model.eval(), config, tuple(state["names"])


def build_criterion(model: Detector, config: TrainConfig) -> Criterion[Any, Any]:
    """The loss of the model's family."""
    return zoo.family_of(model.name).criterion(model, config)


def _boxes_wh_px(annotations: Annotations, imgsz: int) -> NDArray[np.float32]:
    """(N, 2) widths and heights of all boxes but crowds', in pixels of the network's input."""
    gains = imgsz / np.maximum(annotations.heights, annotations.widths)
    gain_of_box = np.repeat(gains.astype(np.float32), annotations.counts)[:, None]
    sizes: NDArray[np.float32] = xyxy_to_xywh(annotations.boxes_xyxy)[:, 2:] * gain_of_box
    return sizes[~annotations.crowd]
