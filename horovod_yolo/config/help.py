"""``--help`` in groups, with defaults: what a user looks for first stands first."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from horovod_yolo.config.schema import TrainConfig

OF_TRAINING: Mapping[str, Sequence[str]] = {
    "data and model": ("data", "cfg", "weights", "teacher", "head", "hyp"),
    "length and size": (
        *("epochs", "batch_size", "micro_batch", "imgsz", "max_steps", "patience", "time", "fraction"),
        *("multi_scale", "rect", "close_mosaic"),
    ),
    "optimizer": ("optimizer", "cos_lr", "scale_lr", "label_smoothing", "freeze", "noautoanchor", "seed"),
    "ranks": (
        *("np", "hosts", "engine", "device", "sync_bn", "slices", "sums", "balance", "threads"),
        *("compression", "fusion_mb", "precision", "compile", "deterministic", "portable_bits"),
        *("check_every", "elastic", "elastic_wait"),
    ),
    "images and labels": (
        *("workers", "cache", "cache_dir", "stage", "class_map", "skip_bad_classes", "single_cls"),
        *("albumentations", "image_weights"),
    ),
    "what a run leaves": (
        *("project", "name", "exist_ok", "resume", "data_changed", "save_period", "commit_every", "record"),
        *("noval", "noplots", "best_by", "log_to", "log_dir", "dashboard"),
    ),
}
OF_VALIDATION: Mapping[str, Sequence[str]] = {
    "data and model": ("weights", "data", "task", "head", "class_map", "skip_bad_classes", "cache_dir"),
    "how to look": (
        "imgsz",
        "rect",
        "batch_size",
        "conf_thres",
        "iou_thres",
        "max_det",
        "precision",
        "workers",
    ),
    "ranks": ("np", "hosts", "engine", "device", "slices"),
    "what is written": ("project", "name", "exist_ok", "noplots", "save_json"),
}
OF_PREDICTION: Mapping[str, Sequence[str]] = {
    "pictures and model": ("weights", "source", "data", "head"),
    "how to look": (
        *("imgsz", "rect", "batch_size", "conf_thres", "iou_thres", "max_det", "classes", "agnostic_nms"),
        *("augment", "precision", "half", "vid_stride", "reconnect"),
    ),
    "ranks": ("np", "hosts", "engine", "device"),
    "what is written": (
        *("project", "name", "exist_ok", "nosave", "save_txt", "save_conf", "save_json", "save_crop"),
        *("view_img", "line_thickness", "hide_labels", "hide_conf"),
    ),
}


def training_help(p: argparse.ArgumentParser) -> None:
    """Put the flags of training in order, each with its default."""
    p.usage = (
        "%(prog)s --data FILE --cfg MODEL [flags]\n       %(prog)s data=FILE model=MODEL [flag=value ...]"
    )
    p.epilog = (
        "Each flag may be written as a word, and then hyperparameters too: epochs=5 cos_lr=True lr0=0.02. "
        "Models without anchors (yolov8, yolo11, yolo26, names with a u) have some defaults of their own: "
        "docs/config.md."
    )
    defaults = {f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING}
    in_groups(p, OF_TRAINING, defaults)


def in_groups(
    p: argparse.ArgumentParser, groups: Mapping[str, Sequence[str]], defaults: Mapping[str, Any]
) -> None:
    """Show the flags of a parser in groups, and behind each its default where that is no plain "on" or "off".

    Args:
        p: the parser, with all of its flags.
        groups: titles, and the flags by `dest` in their order: all that the parser has.
        defaults: by `dest`.
    """
    actions = {action.dest: action for action in p._actions if action.dest != "help"}
    named = {dest for dests in groups.values() for dest in dests}
    assert named >= set(actions), f"in no group of the help: {sorted(set(actions) - named)}"
    p._optionals._group_actions[:] = [action for action in p._actions if action.dest == "help"]
    for title, dests in groups.items():
        if found := [actions[dest] for dest in dests if dest in actions]:
            p.add_argument_group(title)._group_actions += found
    for action in actions.values():
        _complete(action, defaults.get(action.dest))


def group_first(p: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """A new group that the help shows before the others, where they are those of another command."""
    group = p.add_argument_group(title)
    p._action_groups.remove(group)
    p._action_groups.insert(p._action_groups.index(p._optionals) + 1, group)
    return group


def _complete(action: argparse.Action, default: Any) -> None:
    if action.metavar is None and not action.choices and action.nargs != 0:
        action.metavar = "N" if action.type is int else "X" if action.type is float else None
    if default is None or isinstance(default, bool) or default in ("", ()):  # 0 is a default like others
        return
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    action.help = f"{action.help or ''} ({shown})".lstrip()
