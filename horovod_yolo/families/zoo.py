"""The models by name: here, and nowhere else, a name leads to its family."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import torch

from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.families.anchor_based.family import AnchorBased
from horovod_yolo.families.anchor_free.family import AnchorFree
from horovod_yolo.families.base import AS_NAMED, Family, ModelSpec, Shapes, Variant
from horovod_yolo.families.base import Recipe as Recipe
from horovod_yolo.families.base import Recognised as Recognised
from horovod_yolo.families.strangers import what_else
from horovod_yolo.models.detector import Detector, published_names

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


def recipe_of(typed: str) -> Recipe:
    """How a model is trained unless the user says otherwise. Errors as `model_name`."""
    return family_of(typed).recipe


def recipe_if_known(name: str) -> Recipe:
    """`recipe_of` a name that may be none of ours: then what is usual."""
    return recipe_of(name) if name in model_names() else Recipe()


def hyperparameters() -> frozenset[str]:
    """Names of those of all families, but for those that are flags too."""
    names = {f.name for family in FAMILIES for f in fields(family.recipe.hyp)}
    return frozenset(names - {f.name for f in fields(TrainConfig)})


def spec_of(typed: str) -> ModelSpec:
    """What is known of a model without building it. Errors as `model_name`."""
    return family_of(typed).models[model_name(typed)]


def build_model(typed: str, num_classes: int, variant: Variant = AS_NAMED) -> Detector:
    """A new model with weights drawn from torch's global generator (same seed, same weights).

    ``variant`` is what `Detector.variant` of another one tells.

    Raises:
        UserError: unknown name, or no class.
    """
    name = model_name(typed)
    if num_classes < 1:
        raise UserError(f"{num_classes} classes", where=name, fix="a detector needs at least one class")
    family = family_of(name)
    return family.build(name, num_classes, variant) if variant else family.build(name, num_classes)


def model_of(checkpoint: Mapping[str, Any]) -> Detector:
    """A new model of the kind that a checkpoint of ours is of. Errors as `build_model`."""
    names = checkpoint["names"]
    return build_model(str(checkpoint["model_name"]), len(names), checkpoint.get("variant", AS_NAMED))


def recognise(shapes: Shapes, classes: Collection[str] = ()) -> list[Recognised]:
    """The models whose published files have just these keys and shapes: one, or several that are alike.

    Args:
        shapes: of the file's tensors.
        classes: of its modules, without their packages; none where it has tensors only.

    Raises:
        UserError: it holds none of the models here.
    """
    if stranger := what_else(shapes, classes):
        raise UserError(f"this is {stranger[0]}", fix=stranger[1])
    found = [
        guess
        for family in FAMILIES
        for guess in family.recognise(shapes)
        if _is(guess, shapes, family.is_untrained)
    ]
    if not found:
        fix = f"known are {', '.join(model_names())}"
        raise UserError("its tensors are not those of a model that is known here", fix=fix)
    return found


def _is(guess: Recognised, shapes: Shapes, may_be_missing: Callable[[str], bool]) -> bool:
    own = _shapes_of(guess.name, guess.num_classes, tuple(guess.variant.items()))
    return all(key in own or may_be_missing(key) for key in shapes) and all(
        shapes[key] == shape if key in shapes else may_be_missing(key) or counts_batches(key)
        for key, shape in own.items()
    )


@lru_cache(maxsize=32)
def _shapes_of(name: str, num_classes: int, variant: tuple[tuple[str, int], ...]) -> Shapes:
    """Of a model's published file."""
    with torch.device("meta"):  # takes no memory
        model = build_model(name, num_classes, dict(variant))
    values = model.state_dict().values()
    return {key: tuple(value.shape) for key, value in zip(published_names(model), values, strict=True)}


def counts_batches(key: str) -> bool:
    """Whether a tensor only counts batches, which nothing depends on: files may lack it."""
    return key.endswith(".num_batches_tracked")
