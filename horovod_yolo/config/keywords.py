"""Python's keyword arguments as a command line, so that both have one meaning and one set of checks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from os import PathLike
from typing import Any

import numpy

from horovod_yolo.config.class_map import class_map
from horovod_yolo.config.foreign import (
    OF_EXPORT,
    OF_PREDICTION_CALLS,
    OF_TRAINING,
    OF_VALIDATION_CALLS,
    device,
    instead,
)
from horovod_yolo.config.hyperparameters import Hyp
from horovod_yolo.config.load import Parser, nearest
from horovod_yolo.core.errors import UserError

Renaming = Callable[[object], dict[str, object]]
SHARED = frozenset(f.name for f in fields(Hyp))  # hyperparameters of all families
_OF_THE_LAUNCH = ("engine", "np", "hosts")  # arguments of the calls themselves


def same_as(name: str) -> Renaming:
    """Another name of the same."""
    return lambda value: {name: value}


def _unless(name: str, keyword: str) -> Renaming:
    """``val=False`` is ``noval=True``."""
    return lambda value: {name: not _switch(keyword, value)}


def _amp(value: object) -> dict[str, object]:
    return {"precision": "auto" if _switch("amp", value) else "fp32"}


# Ultralytics' and YOLOv5's names of what has another one here.
TRAINING: Mapping[str, Renaming] = {
    "amp": _amp,
    "batch": same_as("batch_size"),
    "img": same_as("imgsz"),
    "img_size": same_as("imgsz"),
    "plots": _unless("noplots", "plots"),
    "val": _unless("noval", "val"),
}
VALIDATION: Mapping[str, Renaming] = {
    "batch": same_as("batch_size"),
    "conf": same_as("conf_thres"),
    "img": same_as("imgsz"),
    "img_size": same_as("imgsz"),
    "iou": same_as("iou_thres"),
    "split": same_as("task"),
}
EXPORT: Mapping[str, Renaming] = {
    "batch": same_as("batch_size"),
    "conf": same_as("conf_thres"),
    "include": same_as("format"),
    "iou": same_as("iou_thres"),
}
_EXPORT_SWITCHES = frozenset(("dynamic", "half", "multi_label", "nms", "simplify", "int8"))
_PREDICTION_SWITCHES = frozenset(("agnostic_nms", "augment", "half", "rect"))
_PREDICTION_NUMBERS = frozenset(
    ("batch", "classes", "conf_threshold", "iou_threshold", "max_detections", "vid_stride")
)
PREDICTION: Mapping[str, Renaming] = {
    "conf": same_as("conf_threshold"),
    "conf_thres": same_as("conf_threshold"),
    "batch_size": same_as("batch"),
    "iou": same_as("iou_threshold"),
    "iou_thres": same_as("iou_threshold"),
    "max_det": same_as("max_detections"),
}


def training_argv(
    parser: Parser, given: Mapping[str, Any], hyperparameters: Collection[str] = SHARED
) -> list[str]:
    """Keyword arguments of `YOLO.train` as a command line; ``hyperparameters`` are no arguments.

    ``cos_lr=True`` is ``--cos-lr``, ``freeze=(0, 1)`` is ``--freeze 0 1``, ``device=[0, 1]`` is
    ``--device=0,1``, ``amp=False`` is ``--precision=fp32``; a flag that is None or False is not given.

    Raises:
        UserError: a name that is no flag, whatever its value, or a value that no flag can have.
    """
    others = ("help", *_OF_THE_LAUNCH)
    actions = {action.dest: action for action in parser._actions if action.dest not in others}
    flags = renamed(given, TRAINING, actions, OF_TRAINING, hyperparameters)
    return [word for name, value in flags.items() for word in argument_words(actions[name], name, value)]


def validation_options(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Keyword arguments of `YOLO.val` under the names of `ValOptions`; None is not given.

    Raises:
        UserError: a name that is no option, whatever its value.
    """
    options = renamed(given, VALIDATION, known, OF_VALIDATION_CALLS)
    if "device" in options:
        options["device"] = device_name(options["device"])
    if "class_map" in options:
        value = options["class_map"]
        pairs = _pairs("class_map", value) if isinstance(value, Mapping) else str(value)
        try:
            options["class_map"] = class_map(pairs)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"class_map {error}") from None
    return options


def export_options(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Keyword arguments of `YOLO.export` under the names of `ExportOptions`; None is not given.

    Raises:
        UserError: a name that is no option, whatever its value, or a value that it cannot have.
    """
    options = renamed(given, EXPORT, known, OF_EXPORT)
    for name, value in options.items():
        if name in _EXPORT_SWITCHES:
            _switch(name, value)
        elif name == "format" and isinstance(value, str):
            options[name] = tuple(value.split(","))
        elif name in ("format", "imgsz"):
            options[name] = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        elif name in ("data", "out", "head"):
            options[name] = str(value)
        elif not _is_number(value):
            raise UserError(f"{name} is {value!r:.60}", fix="it must be a number")
    return options


def prediction_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `YOLO.predict` under one name each; None is not given.

    Raises:
        UserError: a name that is no option, or a value that it cannot have.
    """
    options = renamed(given, PREDICTION, _PREDICTION_SWITCHES | _PREDICTION_NUMBERS, OF_PREDICTION_CALLS)
    for name, value in options.items():
        if name in _PREDICTION_SWITCHES:
            _switch(name, value)
        elif name == "classes":
            several = value if isinstance(value, (list, tuple)) else [value]
            if not all(_is_number(one) and one == int(one) for one in several):
                raise UserError(f"classes is {value!r:.60}", fix="give class numbers, such as [0, 2]")
            options[name] = tuple(map(int, several))
        elif name in ("batch", "max_detections", "vid_stride"):
            if not (_is_number(value) and value >= 1 and value == int(value)):
                raise UserError(f"{name} is {value!r:.60}", fix="it must be a whole number, 1 or more")
            options[name] = int(value)
        elif not (_is_number(value) and 0 <= value <= 1):
            raise UserError(f"{name} is {value!r:.60}", fix="it must be between 0 and 1")
    return options


def portable(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as JSON can hold them, for ranks that are other processes.

    Raises:
        UserError: a value that is an object of this process.
    """
    return {name: _portable(name, value) for name, value in given.items()}


def _portable(name: str, value: object) -> object:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, PathLike):
        return str(value)
    if name == "device":
        return device_name(value)
    if isinstance(value, (list, tuple)):
        return [_portable(name, one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _portable(name, one) for key, one in value.items()}
    if isinstance(value, numpy.generic):
        return value.item()
    raise UserError(
        f"{name} is {type(value).__name__} {value!r:.60}, which other processes cannot be given",
        fix="use text, numbers or a file; or start this script under a launcher, without np",
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def renamed(
    given: Mapping[str, Any],
    others: Mapping[str, Renaming],
    known: Collection[str],
    foreign: Mapping[str, str],
    hyperparameters: Collection[str] = SHARED,
) -> dict[str, Any]:
    """Arguments under our names; those that are None, which is not given, are left out.

    Raises:
        UserError: a name that is neither ours nor others', or two names of one thing.
    """
    result: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if name not in known and name not in others:
            if remedy := instead(flag, foreign):
                raise UserError(f"{name} is not supported", fix=remedy.replace("--", ""))
            if name in hyperparameters:
                fix = f"give hyp={{'{name}': ...}}, or a file with {name}: ..., hyp='hyp.yaml'"
                raise UserError(f"{name} is a hyperparameter", fix=fix)
            raise UserError(f"unknown argument {name}", fix=nearest(name, [*known, *others]))
        if value is None:
            continue
        ours = others[name](value) if name in others else {name: value}
        for key in ours.keys() & result.keys():
            raise UserError(f"{said_by[key]} and {name} are one thing", fix="give one of them")
        result |= ours
        said_by |= dict.fromkeys(ours, name)
    return result


def argument_words(action: argparse.Action, name: str, value: object) -> list[str]:
    """A flag and its value as words of a command line; none for a switch that is off.

    Raises:
        UserError: the flag cannot have this value.
    """
    flag = action.option_strings[0]
    if isinstance(action, argparse._StoreTrueAction):
        return [flag] if _switch(name, value) else []
    if isinstance(action, argparse.BooleanOptionalAction):
        return [flag if _switch(name, value) else flag.replace("--", "--no-", 1)]
    if name == "device":
        return [f"{flag}={device_name(value)}"]
    if isinstance(value, Mapping):
        return [f"{flag}={_pairs(name, value)}"]
    if isinstance(value, bool):
        if action.nargs != "?":
            raise UserError(f"{name} is {value}", fix=f"give {name} its value, or leave it out")
        return [flag] if value else []
    if isinstance(value, (list, tuple)):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]


def _pairs(name: str, value: Mapping[object, object]) -> str:
    """``class_map={"dog": "Hund"}`` as the command line has it."""
    words = [str(word or "") for pair in value.items() for word in pair]
    if any("," in word or "=" in word for word in words):
        raise UserError(
            f"{name} has names with , or =", fix=f"write 'old: new' lines into a file, {name}='map.yaml'"
        )
    return ",".join(f"{old}={new}" for old, new in zip(words[::2], words[1::2], strict=True))


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{name} is {value!r:.60}", fix="it must be True or False")
    return value


def device_name(value: object) -> str:
    """``0``, ``[0, 1]``, ``"cuda:0"`` or a torch.device as the command line has it.

    Raises:
        UserError: it names no device that can be used.
    """
    if isinstance(value, (bool, float, PathLike)):
        raise UserError(f"device is {value!r:.60}", fix="use 'cpu', or GPU numbers such as 0 or [0, 1]")
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    try:
        return device(text) if text else ""
    except argparse.ArgumentTypeError as error:
        raise UserError(f"device {error}") from None
