"""A new run that starts from the weights of another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from horovod_yolo.assembly.given_weights import with_names
from horovod_yolo.config.class_map import ClassMap
from horovod_yolo.core.class_names import NameMatch, find_names, listed, without_own
from horovod_yolo.core.errors import UserError
from horovod_yolo.models.detector import Detector

log = logging.getLogger(__name__)


def transfer(
    model: Detector, checkpoint: dict[str, Any], where: str, names: Sequence[str], class_map: ClassMap = ()
) -> None:
    """Copy the averaged weights of a checkpoint; of the head, what belongs to classes that both know by name.

    Classes are one where their names are equal but for case and spaces, or the class map says so; never by
    their place, also where both know as many. The others start as in a new model.

    Raises:
        UserError: the checkpoint is of another model.
    """
    if checkpoint["model_name"] != model.name:
        raise UserError(
            f"weights are of {checkpoint['model_name']}, the model is {model.name}",
            where=where,
            fix=f"use --cfg {checkpoint['model_name']} or other weights",
        )
    theirs = [str(name) for name in with_names(checkpoint, names, where)["names"]]
    match = find_names(theirs, names, without_own(dict(class_map), names))
    own, given = model.state_dict(), checkpoint["ema"]["weights"]
    taken = given if match.is_identity else _by_class(model, given, len(theirs), match)
    taken = {key: value for key, value in taken.items() if own[key].shape == value.shape}
    model.load_state_dict(taken, strict=False)
    _say(match, theirs, names, f"{len(own) - len(taken)} of {len(own)} tensors are new")
    merged = sum(not torch.equal(value, given[key].to(value)) for key, value in taken.items())
    log.info(
        "weights: %d of %d classes and %d of %d tensors taken from %s%s",
        *(len(names) - len(match.absent), len(names), len(taken), len(own), where),
        f", of {merged} of them the rows of these classes" if merged else "",
    )


def _by_class(
    model: Detector, given: Mapping[str, Tensor], num_theirs: int, match: NameMatch
) -> dict[str, Tensor]:
    """The given weights, of the head's parameters only what it says of shared classes or of none."""
    of_head = {f"head.{name}" for name, _ in model.head.named_parameters()}
    others = {key: value for key, value in given.items() if key not in of_head}
    return others | model.head.with_classes_of(given, "head.", num_theirs, match.ids)


def _say(match: NameMatch, theirs: Sequence[str], ours: Sequence[str], new_tensors: str) -> None:
    if match.is_identity:
        return
    if all(place is None for place in match.ids):
        log.warning("weights: they know %s, none of %s: %s", listed(theirs, 5), listed(ours, 5), new_tensors)
        return
    left_out = f"; left out are {listed(match.left_out, 5)}" if match.left_out else ""
    new = f"; new are {listed(match.absent, 5)}" if match.absent else ""
    log.warning("weights: the head's classes go by name%s%s", left_out, new)
