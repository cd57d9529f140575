"""A new run that starts from the weights of another one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from horovod_yolo.config.class_map import ClassMap
from horovod_yolo.core.class_names import NameMatch, find_names, listed, match_names, without_own
from horovod_yolo.core.errors import UserError
from horovod_yolo.models.detector import Detector

log = logging.getLogger(__name__)
MOST_IN_ADVICE = 3


def transfer(
    model: Detector, checkpoint: dict[str, Any], where: str, names: Sequence[str], class_map: ClassMap = ()
) -> None:
    """Copy the averaged weights of a checkpoint; of the head, what belongs to classes that both know by name.

    Where no class is known to both the head stays as it is: models are often trained further on other things.
    As many classes by other names may be those things or the same ones renamed, and are an error.

    Raises:
        UserError: the checkpoint is of another model, or its classes are as many and go by other names.
    """
    if checkpoint["model_name"] != model.name:
        raise UserError(
            f"weights are of {checkpoint['model_name']}, the model is {model.name}",
            where=where,
            fix=f"use --cfg {checkpoint['model_name']} or other weights",
        )
    theirs = [str(name) for name in checkpoint["names"]]
    match = _matched(theirs, names, class_map, where)
    own, taken = model.state_dict(), dict(checkpoint["ema"]["weights"])
    if not match.is_identity:
        if all(place is None for place in match.ids):
            log.warning(
                "weights: they know %s, none of %s: the head is new", listed(theirs, 5), listed(names, 5)
            )
        else:
            _say(match)
        of_head = model.head.with_classes_of(taken, "head.", len(theirs), match.ids)
        taken = {key: value for key, value in {**taken, **of_head}.items() if own[key].shape == value.shape}
    model.load_state_dict(taken, strict=False)
    log.info("weights: %d of %d tensors taken from %s", len(taken), len(own), where)


def _matched(theirs: Sequence[str], names: Sequence[str], class_map: ClassMap, where: str) -> NameMatch:
    """Which classes both know. As many by other names may be the same ones: only the user knows."""
    settled = without_own(dict(class_map), names)
    if len(theirs) != len(names):
        return find_names(theirs, names, settled)
    meeting = "the classes of these weights and of the data"
    try:
        return match_names(theirs, names, settled, meeting=meeting, where=where)
    except UserError as error:
        raise UserError(
            f"{error}. For a new head, leave all of theirs out: --class-map '{_none_of(theirs)}'"
        ) from None


def _none_of(names: Sequence[str]) -> str:
    shown = ",".join(f"{name}=" for name in names[:MOST_IN_ADVICE])
    return shown + (",..." if len(names) > MOST_IN_ADVICE else "")


def _say(match: NameMatch) -> None:
    left_out = f"; left out are {listed(match.left_out)}" if match.left_out else ""
    new = f"; new are {listed(match.absent)}" if match.absent else ""
    log.warning("weights: the head's classes go by name%s%s", left_out, new)
