"""Weights of other trainers as a checkpoint of ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.checkpoint.migration import FORMAT_VERSION
from horovod_yolo.checkpoint.published import Published, opened_published
from horovod_yolo.config.schema import to_dict
from horovod_yolo.core.errors import UserError
from horovod_yolo.families import zoo
from horovod_yolo.models.detector import published_names

log = logging.getLogger(__name__)
USUAL_INPUT_PX, USUAL_INPUT_P6_PX = 640, 1280  # for files that do not say what they were trained at


def published_model(path: Path, cfg: str = "") -> zoo.Recognised:
    """Which model a file holds; of the file only its structure is read.

    Args:
        path: of the file.
        cfg: the model that the user named, if any.

    Raises:
        UserError: none of ours, another one than was named, or it may be one of several and none was named.
    """
    with opened_published(path) as file:
        return _recognised(file, cfg)


def published_checkpoint(path: Path, cfg: str = "") -> dict[str, Any]:
    """What ``best.pt`` would hold, had the file's model been trained here. Arguments as `published_model`.

    ``names_known`` is False where the file does not name its classes; they are class0, class1 and so on.

    Raises:
        UserError: as `published_model`; or values that are damaged or no finite numbers.
    """
    with opened_published(path) as file:
        found = _recognised(file, cfg)
        names = _names(file, found)
        weights = _weights(file, found)
        stated = file.license or ("" if file.exported else f"not stated in {path.name}")
        if stated:
            log.warning(
                "weights: %s holds %s with %d classes. Published weights carry their own licence (of this "
                "file: %s; Ultralytics': AGPL-3.0), which may reach what is trained from them: "
                "see docs/weights.md",
                *(path, found.name, found.num_classes, stated),
            )
        most = max(zoo.spec_of(found.name).strides)
        imgsz = file.imgsz or (USUAL_INPUT_P6_PX if most > 32 else USUAL_INPUT_PX)
        settings = {"data": "", "cfg": found.name, "imgsz": imgsz, "head": file.head}
        return {
            "format_version": FORMAT_VERSION,
            "model_name": found.name,
            "variant": dict(found.variant),
            "ema": {"weights": weights, "updates": 0},
            "metrics": {},
            "config": to_dict(settings_of(settings)),
            "names": list(names),
            "names_known": file.names is not None,
            "epoch": 0,
            "step": 0,
            **({"license": stated} if stated else {}),
        }


def _recognised(file: Published, cfg: str) -> zoo.Recognised:
    try:
        found = zoo.recognise(file.shapes, file.classes)
    except UserError as error:
        raise UserError(str(error), where=file.path) from None
    names = [one.name for one in found]
    if not cfg and file.model in names:
        return found[names.index(file.model)]
    if cfg:
        found = [one for one in found if one.name == zoo.model_name(cfg)]
        if not found:
            fix = f"leave --cfg out, use --cfg {names[0]} or other weights"
            raise UserError(f"weights are of {' or '.join(names)}, not of {cfg}", where=file.path, fix=fix)
    if len(found) > 1:
        fix = f"say which it is: --cfg {names[0]}"
        raise UserError(f"its tensors may be those of {' or '.join(names)}", where=file.path, fix=fix)
    strides = zoo.spec_of(found[0].name).strides
    if file.strides not in (None, strides):
        fix = "it was changed by hand; use another file"
        raise UserError(
            f"its strides are {file.strides}, those of {names[0]} {strides}", where=file.path, fix=fix
        )
    return found[0]


def _names(file: Published, found: zoo.Recognised) -> tuple[str, ...]:
    if file.names is None:
        log.warning("weights: %s does not name its classes: they are class0, class1, ...", file.path)
        return tuple(f"class{number}" for number in range(found.num_classes))
    if len(file.names) != found.num_classes:
        raise UserError(
            f"it names {len(file.names)} classes, its head has {found.num_classes}",
            where=file.path,
            fix="it is damaged or was changed by hand; use another file",
        )
    return file.names


def _weights(file: Published, found: zoo.Recognised) -> dict[str, torch.Tensor]:
    """By our keys, in float32. What a file may lack is as in a new model."""
    with torch.random.fork_rng(devices=[]):
        model = zoo.build_model(found.name, found.num_classes, found.variant)
    untrained = zoo.family_of(found.name).is_untrained
    pairs = zip(model.state_dict(), published_names(model), strict=True)
    wanted = {key: own for own, key in pairs if key in file.shapes and not untrained(key)}
    taken = file.tensors(wanted)
    model.load_state_dict({wanted[key]: value for key, value in taken.items()}, strict=False)
    return dict(model.state_dict())
