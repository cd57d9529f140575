"""``epochs=5 imgsz=640`` on a command line, as Ultralytics' users write it: ``--epochs 5 --imgsz 640``.

Ranks that a command starts get flags, so there is one meaning and one set of checks.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import PurePath

from horovod_yolo.config import keywords
from horovod_yolo.config.keywords import Renaming, argument_words, renamed, same_as
from horovod_yolo.config.load import Parser
from horovod_yolo.core.errors import UserError

_WORD = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_WEIGHTS = (".pt", ".pth", ".safetensors")
_CONSTANTS: Mapping[str, bool | None] = {"true": True, "false": False, "none": None}

# Of all families, but for what is a flag too.
HYPERPARAMETERS = keywords.SHARED | {
    *("box", "cls", "cls_pw", "obj", "obj_pw", "iou_t", "anchor_t", "anchors", "fl_gamma"),
    *("cutmix", "dfl"),
}


def _model(value: object) -> dict[str, object]:
    """``yolo11n`` and ``yolo11n.yaml`` are models, ``yolo11n.pt`` are weights."""
    path = PurePath(str(value))
    if path.suffix in _WEIGHTS:
        return {"weights": str(value)}
    return {"cfg": path.stem if path.suffix in (".yaml", ".yml") else str(value)}


def _only(name: str, allowed: object, remedy: str) -> Renaming:
    """What others have to say, and what is so here anyway."""

    def checked(value: object) -> dict[str, object]:
        if value != allowed:
            raise UserError(f"{name}={value} is not supported", fix=remedy)
        return {}

    return checked


def _unless(name: str) -> Renaming:
    """``save=False`` is ``nosave``."""
    return lambda value: {name: True} if value is False else {}


def _split_or_task(value: object) -> dict[str, object]:
    """YOLOv5's ``task`` is a split, Ultralytics' is what the model does."""
    return {} if value == "detect" else {"task": value}


_DETECTS = "horovod-yolo has detection only"
_TRAINING: Mapping[str, Renaming] = {
    **keywords.TRAINING,
    "model": _model,
    "save": _only("save", True, "leave it out: last.pt is what resume needs"),
    "task": _only("task", "detect", _DETECTS),
}
_TABLES: Mapping[str, Mapping[str, Renaming]] = {
    "train": _TRAINING,
    "tune": {**_TRAINING, "iterations": same_as("trials")},
    "val": {
        **keywords.VALIDATION,
        "model": same_as("weights"),
        "task": _split_or_task,
        "plots": _unless("noplots"),
    },
    "predict": {
        "save": _unless("nosave"),
        "show": same_as("view_img"),
        "show_conf": _unless("hide_conf"),
        "show_labels": _unless("hide_labels"),
        "line_width": same_as("line_thickness"),
        "task": _only("task", "detect", _DETECTS),
    },
    "export": {**keywords.EXPORT, "task": _only("task", "detect", _DETECTS)},
}

# Ultralytics has one list of settings for all commands: what is of another one, and what is of none here.
_ELSEWHERE: Mapping[str, Collection[str]] = {
    "train": (
        "epochs",
        "patience",
        "save_period",
        "optimizer",
        "cos_lr",
        "close_mosaic",
        "resume",
        "seed",
        "freeze",
    ),
    "tune": ("iterations", "trials", "space"),
    "val": ("split", "save_json"),
    "predict": ("source", "vid_stride", "save_txt", "save_crop", "show", "classes", "agnostic_nms"),
    "export": ("format", "dynamic", "simplify", "opset", "int8", "nms"),
}
_NOT_HERE: Mapping[str, str] = {
    "auto_augment": "leave it out: it is for classification",
    "copy_paste_mode": "leave it out: it needs masks",
    "embed": "use a hook, as docs/predict.md shows",
    "end2end": "use head=one2one or head=one2many",
    "erasing": "leave it out: it is for classification",
    "kobj": "leave it out: it is for poses",
    "mask_ratio": "leave it out: there are no masks here",
    "pose": "leave it out: it is for poses",
    "bgr": "leave it out: images are RGB",
    "tracker": "leave it out: objects are not followed over images",
}


def words_of(command: str) -> Collection[str]:
    """What may stand before ``=`` beside the names of the flags."""
    return {*_TABLES[command], *(HYPERPARAMETERS if command in ("train", "tune") else ())}


def with_words(parser: Parser, command: str) -> Parser:
    """The parser of a command that has a table of words, which takes them too from now on."""
    parser.spell = partial(_as_flags, parser, command)
    return parser


def spelled(argv: Sequence[str], parser: Callable[[], Parser]) -> list[str]:
    """The arguments as flags alone; as they are where they have a mistake, which parsing them will tell."""
    try:
        return parser().spell(argv)
    except UserError:
        return list(argv)


def _as_flags(parser: Parser, command: str, argv: Sequence[str]) -> list[str]:
    """The arguments with words as flags at the end.

    Raises:
        UserError: a word that is none of the command's.
    """
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    others = {**_aliases(parser), **_TABLES[command], "mode": _only("mode", command, f"this is {command}")}
    flags, words = _sorted(argv, parser, {*actions, *others})
    if not words:
        return flags
    given = {name: _typed(value) for name, value in words.items()}
    if command in ("train", "tune"):
        _gather_hyperparameters(given, actions, any(f.partition("=")[0] == "--hyp" for f in flags))
    _refuse_of_others(given, command, {*actions, *others})
    named = renamed(given, others, actions, parser.foreign, ())
    if named.get("resume") is True and str(named.get("weights", "")).endswith(_WEIGHTS):
        named["resume"] = named.pop("weights")  # as theirs: resume=True model=last.pt
    return [*flags, *(word for name, value in named.items() for word in _of(actions[name], name, value))]


def _sorted(argv: Sequence[str], parser: Parser, known: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Flags with their values, and words. ``--class-map a=b`` is a flag with its value."""
    by_flag = parser._option_string_actions
    flags: list[str] = []
    words: dict[str, str] = {}
    needed, more = 0, False  # values of the flag before
    for text in argv:
        match = _WORD.fullmatch(text)
        if needed or not match or (more and match[1] not in known):
            flags.append(text)
            needed = max(0, needed - 1)
            if text.startswith("-") and text in by_flag:
                nargs = by_flag[text].nargs
                needed = nargs if isinstance(nargs, int) else int(nargs in (None, "+"))
                more = nargs in ("+", "*")
        else:
            words[match[1]] = match[2]
            more = False
    return flags, words


def _aliases(parser: Parser) -> dict[str, Renaming]:
    """All names of the flags: ``batch`` of ``--batch-size``."""
    named = (
        (flag.lstrip("-").replace("-", "_"), action) for flag, action in parser._option_string_actions.items()
    )
    return {name: same_as(action.dest) for name, action in named if name != action.dest and len(name) > 1}


def _typed(text: str) -> object:
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if text.startswith(("[", "(")):
        try:
            return json.loads(f"[{text[1:-1]}]")
        except ValueError:
            return text
    return text


def _gather_hyperparameters(given: dict[str, object], actions: Collection[str], file: bool) -> None:
    """``lr0=0.02 box=5`` becomes one ``--hyp`` that holds them; ``file``: there is such a flag already."""
    found = {name: given.pop(name) for name in list(given) if name in HYPERPARAMETERS and name not in actions}
    if not found:
        return
    if file or "hyp" in given:
        raise UserError(
            f"hyp and {next(iter(found))} exclude each other", fix="write all of them into the file"
        )
    try:
        given["hyp"] = json.dumps({name: float(str(value)) for name, value in found.items()})
    except ValueError:
        raise UserError(
            f"{' '.join(f'{n}={v}' for n, v in found.items())}", fix="these are numbers"
        ) from None


def _refuse_of_others(given: Mapping[str, object], command: str, known: Collection[str]) -> None:
    for name in given:
        if name in known:
            continue
        if name in _NOT_HERE:
            raise UserError(f"{name} is not supported", fix=_NOT_HERE[name])
        for other, names in _ELSEWHERE.items():
            if name in names:
                raise UserError(f"{name} is of horovod-yolo {other}, not of {command}", fix="leave it out")
        if name in HYPERPARAMETERS:
            raise UserError(f"{name} is of horovod-yolo train, not of {command}", fix="leave it out")


def _of(action: argparse.Action, name: str, value: object) -> list[str]:
    """A flag and its value; numbers may stand with commas: ``freeze=0,1``."""
    if isinstance(value, str) and action.nargs == "+" and re.fullmatch(r"\d+(,\d+)+", value):
        return argument_words(action, name, value.split(","))
    return argument_words(action, name, value)
