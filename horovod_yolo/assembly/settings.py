"""A run's settings: of the model's family, of the hyperparameter file, of the flags; the later wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from horovod_yolo.config.hyperparameters import Hyp
from horovod_yolo.config.load import config_from_flags, hyp_of, load_hyp
from horovod_yolo.config.schema import TrainConfig, from_dict
from horovod_yolo.core.errors import UserError
from horovod_yolo.families import zoo


def settings_of(given: dict[str, Any]) -> TrainConfig:
    """The settings of a new run.

    Args:
        given: flags, as `train_parser` names them, without ``resume``. ``cfg`` is among them, also where the
            weights tell it. ``hyp`` may be the hyperparameters themselves.

    Raises:
        UserError: a mistake in the flags or the file, or a file for models of another family.
    """
    config_from_flags(given)  # what is wrong with whatever model
    family = zoo.family_of(str(given["cfg"]))
    hyp = given_hyp(given.get("hyp") or {}, str(given["cfg"]))
    config = config_from_flags({**family.recipe.run, **given}, hyp)
    if config.label_smoothing and not hasattr(hyp, "label_smoothing"):
        raise UserError(
            f"--label-smoothing {config.label_smoothing}: the loss of {family.name} models has none",
            fix="leave it out",
        )
    return config


def given_hyp(given: str | Mapping[str, Any], model: str) -> Hyp:
    """The hyperparameters for a model, from a file or as they are. Errors as `load_hyp`."""
    family = zoo.family_of(model)
    others = {other.name: other.recipe.hyp for other in zoo.FAMILIES if other.name != family.name}
    if isinstance(given, Mapping):
        return hyp_of(given, "hyp", family.recipe.hyp, family.name, others)
    return load_hyp(given, family.recipe.hyp, family.name, others)


def settings_of_state(state: dict[str, Any]) -> TrainConfig:
    """The settings that a checkpoint was made with."""
    return kept_settings(state["config"], str(state["model_name"]))


def kept_settings(values: dict[str, Any], model: str) -> TrainConfig:
    """Settings of a run of a model, as `to_dict` has them."""
    return from_dict(values, zoo.recipe_of(model).hyp)
