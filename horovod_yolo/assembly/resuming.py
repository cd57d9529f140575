"""The settings of a resumed run: its own, but for the place that it goes on in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.settings import given_hyp
from horovod_yolo.config.schema import AUTO
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.own_pipeline import load_pipeline

# Of this job; the results stay the same. That labels are read as the same data is seen by its digest.
PLACE = (
    *("data", "data_changed", "skip_bad_classes", "record", "check_every", "balance"),
    *("device", "workers", "cache", "cache_dir", "stage", "log_dir", "log_to", "dashboard", "noplots"),
    *("elastic", "elastic_wait"),
)
NAMES_OF_RUN = ("project", "name", "exist_ok")  # of the run's start; a resumed run has them already
PATHS = ("data", "weights", "teacher", "cache_dir", "stage", "log_dir")


def absolute_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that mean the same from another working folder."""
    found = {name: str(Path(settings[name]).absolute()) for name in PATHS if settings.get(name)}
    return {**settings, **found}


def settings_here(state: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The run's settings with those of the machine it goes on on.

    Args:
        state: of the checkpoint.
        given: the flags on the command line.

    Raises:
        UserError: a flag that would make it another run.
    """
    saved = {**state["config"], "data_changed": False}
    precision = _precision(state)
    for name, value in absolute_paths(given).items():
        if name in PLACE or (name == "teacher" and saved.get(name)):
            saved[name] = value
        elif name == "class_map":
            saved[name] = {**saved.get(name, {}), **dict(value)}
        elif name in ("hyp", "albumentations"):
            if _content(name, value, state) != saved.get(name, ""):
                what = f"--{name} {value} differs from the run's"
                raise UserError(what, where="--resume", fix="leave it out")
        elif name == "micro_batch":
            saved[name] = saved.get(name) or value if value == AUTO else value
        elif (name == "precision" and value in ("auto", precision)) or _is_nominal(name, value, saved):
            continue
        elif name not in NAMES_OF_RUN and _plain(value) != _saved(saved, name):
            raise UserError(
                f"--{name.replace('_', '-')} {given[name]} differs from the run's {saved.get(name)}",
                where="--resume",
                fix="leave the flag out, or start a new run from its weights with --weights",
            )
    return {**saved, "precision": precision}


def _content(name: str, value: Any, state: dict[str, Any]) -> Any:
    """What a file says, as checkpoints have it."""
    if name == "albumentations":
        return load_pipeline(Path(value)).content
    return asdict(given_hyp(value, str(state["model_name"])))


def _is_nominal(name: str, value: Any, saved: dict[str, Any]) -> bool:
    """Whether it is ``--batch-size auto`` of a run that has that batch."""
    return name == "batch_size" and value == AUTO and saved[name] == round(saved["hyp"]["nbs"])


def _saved(saved: dict[str, Any], name: str) -> Any:
    value = saved.get(name)
    return str(Path(value).absolute()) if name in PATHS and value else value


def _plain(value: Any) -> Any:
    """A setting as checkpoints have it."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _precision(state: dict[str, Any]) -> str:
    """What the run computes in: where it began, ``auto`` stood for one of them. A scaler tells of fp16."""
    stated = str(state["config"].get("precision", "auto"))
    if stated != "auto":
        return stated
    return str(state.get("precision") or ("fp16" if state["scaler"] else "fp32"))
