"""The models by name: here, and nowhere else, a name leads to its family."""

from __future__ import annotations

import difflib
from pathlib import PurePosixPath

from horovod_yolo.core.errors import UserError
from horovod_yolo.families.anchor_based.family import AnchorBased
from horovod_yolo.families.anchor_free.family import AnchorFree
from horovod_yolo.families.base import Family, ModelSpec
from horovod_yolo.models.detector import Detector

FAMILIES: tuple[Family, ...] = (AnchorBased(), AnchorFree())


def model_names() -> list[str]:
    """Every model there is."""
    return [name for family in FAMILIES for name in family.models]


def model_name(typed: str) -> str:
    """The name of a model. ``models/yolov5s.yaml``, as YOLOv5's users write it, means ``yolov5s``.

    Raises:
        UserError: there is no such model; the nearest name is given.
    """
    path = PurePosixPath(typed.replace("\\", "/"))
    name, known = path.stem if path.suffix == ".yaml" else typed, model_names()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown model {typed!r}", where="--cfg", fix=f"{hint}known: {', '.join(known)}")
    return name


def family_of(typed: str) -> Family:
    """The family of a model. Errors as `model_name`."""
    name = model_name(typed)
    return next(family for family in FAMILIES if name in family.models)


def spec_of(typed: str) -> ModelSpec:
    """What is known of a model without building it. Errors as `model_name`."""
    return family_of(typed).models[model_name(typed)]


def build_model(typed: str, num_classes: int) -> Detector:
    """A new model with weights drawn from torch's global generator (same seed, same weights).

    Raises:
        UserError: unknown name, or no class.
    """
    name = model_name(typed)
    if num_classes < 1:
        raise UserError(f"{num_classes} classes", where=name, fix="a detector needs at least one class")
    return family_of(name).build(name, num_classes)
