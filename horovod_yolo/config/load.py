"""From command line and hyperparameter file to a `TrainConfig`."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, get_args

from horovod_yolo.config import foreign
from horovod_yolo.config.class_map import class_map
from horovod_yolo.config.help import training_help
from horovod_yolo.config.hyperparameters import Hyp
from horovod_yolo.config.schema import (
    AUTO,
    Balance,
    BestBy,
    Cache,
    Compression,
    LoggerName,
    OptimizerName,
    Precision,
    ScaleLr,
    Sums,
    TrainConfig,
)
from horovod_yolo.core.engines import ENGINES
from horovod_yolo.core.errors import UserError
from horovod_yolo.io.plain_yaml import read_mapping

RECORDED_STEPS = 100  # where --record does not say how many
HYP_FILE_BYTES = 1 << 16  # a hyperparameter file is a page; more than this is some other file


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are `UserError` and name the nearest flag."""

    foreign: Mapping[str, str] = {}  # flags of others, and what to do instead
    # Words such as epochs=5, where a command takes them, as flags: see `words.with_words`.
    spell: Callable[[Sequence[str]], list[str]] = list

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process."""
        raise UserError(message, fix=f"see `{self.prog} --help`")

    def parse_strictly(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse all of ``argv``; an unknown flag is an error that names the nearest one.

        A flag of another tool is not supported, with what to do instead.
        """
        known, unknown = self.parse_known_args(None if argv is None else self.spell(argv))
        if unknown:
            flag = unknown[0].split("=")[0]
            if remedy := foreign.instead(flag, self.foreign):
                raise UserError(f"{flag} is not supported", fix=remedy)
            raise UserError(f"unknown argument {unknown[0]}", fix=nearest(flag, self._flags()))
        return known

    def _flags(self) -> list[str]:
        """All flags, those of subcommands too."""
        below = [
            parser
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for parser in action.choices.values()
        ]
        actions = [action for parser in (self, *below) for action in parser._actions]
        return [flag for action in actions for flag in action.option_strings]


def nearest(word: str, known: Collection[str]) -> str:
    """A hint for a misspelt ``word``: the most similar known ones."""
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known are: {', '.join(sorted(known))}"


HEAD_HELP = "that detects: YOLO26 has one2one (usual, without suppression) and one2many (with)"
DEVICE_HELP = "cpu, or GPU numbers such as 0 or 0,1 of each host"
FREEZE_HELP = "train no more: the first N layers, several numbers: these, or what has names such as model.0"


def train_parser(prog: str = "train.py") -> Parser:
    """All flags of a training run. Defaults stay absent: what was given can be told from what was not."""
    p = Parser(prog=prog, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    p.foreign = foreign.OF_TRAINING
    add = p.add_argument
    add("--data", metavar="FILE", help="data.yaml: path, train, val, nc, names; or digits, made on the spot")
    models = "model: yolov5n, yolov8n, yolo11n, yolo26n, yolov3, ..."
    add("--cfg", "--model", dest="cfg", metavar="MODEL", help=models)
    add("--weights", metavar="FILE", help="start from the weights of a checkpoint")
    add("--head", help=HEAD_HELP)
    hyp = """hyperparameters of the model's family: YOLOv5's hyp*.yaml, or '{"lr0": 0.02}'"""
    add("--hyp", type=hyp_or_file, metavar="FILE", help=hyp)
    add("--epochs", type=int, help="times that every image is seen")
    _add_batch_flags(p)
    add_ranks_flags(p)
    add("--rect", action="store_true", help="rectangular training: least padding, no mosaic, no shuffling")
    _add_choice_flags(p)
    _add_resume_flags(p)
    add("--cache", nargs="?", const="ram", choices=get_args(Cache), help="keep images as they are read")
    add("--multi-scale", dest="multi_scale", action="store_true", help="vary the input size by 50%%")
    add("--optimizer", choices=get_args(OptimizerName), help="auto: by the length of the run")
    add("--sync-bn", dest="sync_bn", action="store_true", help="batch norm over the whole global batch")
    add("--workers", type=int, help="data-loading processes of each rank; 0: the rank itself")
    _add_folder_flags(p)
    add("--cos-lr", dest="cos_lr", action="store_true", help="cosine instead of linear decay")
    smoothing = "share of a target that goes to the other classes, 0 to 1"
    add("--label-smoothing", dest="label_smoothing", type=float, help=smoothing)
    add("--patience", type=int, help="stop after so many epochs without a better one; 0: never")
    closed = "images are not mixed any more in so many last epochs: no mosaic, mixup, cutmix"
    add("--close-mosaic", dest="close_mosaic", type=int, metavar="N", help=closed)
    add("--freeze", type=row_or_name, nargs="+", metavar="N", help=FREEZE_HELP)
    add("--seed", type=int, help="of everything random; the same seed, the same run")
    add("--noautoanchor", action="store_true", help="keep the model's anchors")
    add(
        "--compression",
        choices=get_args(Compression),
        help="of gradients on the wire; auto: fp16 on GPUs, with a scaler",
    )
    add("--fusion-mb", dest="fusion_mb", type=float, help="most MB of a group that gradients travel in")
    _add_elastic_flags(p)
    _add_arithmetic_flags(p)
    add("--scale-lr", dest="scale_lr", choices=get_args(ScaleLr), help="lr0 by the images of a step / nbs")
    add("--max-steps", dest="max_steps", type=int, help="stop after so many optimizer steps; 0: no limit")
    add_label_flags(p)
    _add_place_flags(p)
    _add_proof_flags(p)
    training_help(p)
    return p


def hyp_or_file(text: str) -> dict[str, Any] | str:
    """Type of ``--hyp``: a file, or the hyperparameters themselves as JSON."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is neither a file nor JSON ({error})") from None


def _add_choice_flags(p: argparse.ArgumentParser) -> None:
    """What of the data is trained on, how often, and which epoch is the best."""
    weighted = "draw images of rare and badly found classes more often, with replacement"
    p.add_argument("--image-weights", dest="image_weights", action="store_true", help=weighted)
    own = "a pipeline as albumentations writes it, YAML or JSON, in place of the usual four"
    p.add_argument("--albumentations", metavar="FILE", help=own)
    one = "all classes are one, called item"
    p.add_argument("--single-cls", dest="single_cls", action="store_true", help=one)
    p.add_argument("--fraction", type=float, metavar="SHARE", help="about that share of the training images")
    taught = "learn from the answers of a trained model too, of whatever family"
    p.add_argument("--teacher", metavar="FILE", help=taught)
    hours = "train as many epochs as fit; --epochs is the guess of the first one; 0: no limit"
    p.add_argument("--time", type=float, metavar="HOURS", help=hours)
    best = "what best.pt and --patience go by: mAP, or the sum of the validation's losses"
    p.add_argument("--best-by", dest="best_by", choices=get_args(BestBy), help=best)


def _add_batch_flags(p: argparse.ArgumentParser) -> None:
    add_shared_flags(p, batch_size=foreign.batch_size_or_auto)
    p.add_argument(
        "--micro-batch",
        dest="micro_batch",
        type=foreign.number_or_auto,
        metavar="N",
        help="images of a slice that go through the network at once; 0: all; auto: as fit each rank's memory",
    )
    p.add_argument(
        "--slices", type=int, metavar="V", help="parts of a batch with a pass each; 0: as many as ranks"
    )
    p.add_argument("--sums", choices=get_args(Sums), help="of gradients; exact: equal bits on any ranks")
    balance = "of slices over ranks; static: by weights of hosts, or cores; auto: by measured time"
    p.add_argument("--balance", choices=get_args(Balance), help=balance)
    threads = "that each rank computes on, as bits depend on it; 0: the smallest share of cores"
    p.add_argument("--threads", type=int, metavar="N", help=threads)


def _add_arithmetic_flags(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--precision", choices=get_args(Precision), help="of the forward pass; auto: fp16 on GPUs")
    add("--compile", action="store_true", help="compile the network's passes first, which takes minutes")
    add("--deterministic", action="store_true", help="the same bits in every run on a GPU; slower")
    portable = "compute on all x86 processors as those with AVX2 do; slower"
    add("--portable-bits", dest="portable_bits", action="store_true", help=portable)


def _add_folder_flags(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--project", help="folder of the run folders")
    add("--name", help="name of the run folder")
    add("--exist-ok", dest="exist_ok", action="store_true", help="use the folder even where it exists")
    add("--save-period", dest="save_period", type=int, help="keep a checkpoint each N epochs; -1: none")
    add("--noval", action="store_true", help="validate after the last epoch only")
    add("--noplots", action="store_true", help="no plots and no report at the end")
    add("--commit-every", dest="commit_every", type=int, help="write last.pt every so many steps too; 0: no")


def _add_elastic_flags(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--elastic", action="store_true", help="go on when ranks are lost or come; commits are in memory")
    add("--elastic-wait", dest="elastic_wait", type=float, help="seconds to wait for enough ranks")


def _add_place_flags(p: argparse.ArgumentParser) -> None:
    folder = "folder of the data index and the image cache; default: below ~/.cache"
    p.add_argument("--cache-dir", dest="cache_dir", metavar="DIR", help=folder)
    copied = "copy the images to this folder, on a disk of each host, while training goes on"
    p.add_argument("--stage", metavar="DIR", help=copied)
    log = "a log file of each rank in this folder, with all messages"
    p.add_argument("--log-dir", dest="log_dir", help=log)
    page = "show the run while it goes at this port of loopback, as page and for Prometheus; 0: a free port"
    p.add_argument("--dashboard", metavar="[HOST:]PORT", help=page)
    to = "where numbers go too; tensorboard, where it is installed; none: nowhere"
    p.add_argument("--log-to", dest="log_to", nargs="+", choices=get_args(LoggerName), help=to)


def _add_proof_flags(p: argparse.ArgumentParser) -> None:
    record = "keep digests of each slice's gradients in the last N steps, for replay; 0: none"
    p.add_argument("--record", nargs="?", type=int, const=RECORDED_STEPS, metavar="N", help=record)
    check = (
        "in every N-th step two ranks do the same slice, and a rank that computes wrongly is named; 0: never"
    )
    p.add_argument("--check-every", dest="check_every", type=int, metavar="N", help=check)


def row_or_name(text: str) -> int | str:
    """Type of ``--freeze``: a number of layers or of a layer, or a name in the model."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text.strip(), re.ASCII) else text


def _add_resume_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        help="go on from a run folder or checkpoint; alone: the newest; auto: the run of --name, new or not",
    )
    p.add_argument(
        "--data-changed",
        dest="data_changed",
        action="store_true",
        help="with --resume: go on though images or labels are others than when the run began",
    )


def add_shared_flags(
    p: argparse.ArgumentParser, batch_size: Callable[[str], Any] = foreign.batch_size
) -> None:
    """The flags that ``train`` and ``val`` have alike, with what others write there.

    ``batch_size`` is the type of that flag.
    """
    p.add_argument(
        *("--batch-size", "--batch"),
        dest="batch_size",
        type=batch_size,
        metavar="N",
        help="images of a batch, total over all ranks",
    )
    p.add_argument(
        *("--imgsz", "--img", "--img-size"),
        dest="imgsz",
        type=int,
        nargs="+",
        action=foreign.OneSize,
        metavar="N",
        help="square input size in pixels",
    )
    p.add_argument("--device", type=foreign.device, help=DEVICE_HELP)
    add_engine_flag(p)


class _NotedEarlier(argparse.Action):
    """A flag that is looked at before the others: here it is only checked."""

    def __call__(self, *_: object) -> None:
        """Keep nothing."""


def add_ranks_flags(p: argparse.ArgumentParser, *others: str) -> None:
    """How many ranks a command starts without a launcher, and where; ``others`` are names of ``--np`` too."""
    ranks = "ranks to start, without a launcher; default: one, or as many as --device names"
    p.add_argument("--np", *others, dest="np", type=int, metavar="N", help=ranks)
    p.add_argument("--hosts", metavar="LIST", help="start the ranks there: host1:4,host2:4")


def add_engine_flag(p: argparse.ArgumentParser) -> None:
    """What ranks talk through. `distributed.backends.note_engine` has read it before the ranks met."""
    p.add_argument(
        "--engine",
        choices=ENGINES,
        action=_NotedEarlier,
        default=argparse.SUPPRESS,
        help="what ranks talk through; auto: torch under torchrun or without Horovod, else Horovod",
    )


def add_label_flags(p: argparse.ArgumentParser) -> None:
    """How ``train`` and ``val`` read labels."""
    p.add_argument(
        "--class-map",
        dest="class_map",
        type=class_map,
        metavar="OLD=NEW,...",
        help="which class a name in the labels or the checkpoint is, or a YAML file; OLD= leaves it out",
    )
    p.add_argument(
        "--skip-bad-classes",
        dest="skip_bad_classes",
        action="store_true",
        help="leave out rows whose class number is none of names, instead of ending",
    )


def load_hyp(
    path: str | Path,
    kind: type[Hyp] = Hyp,
    family: str = "",
    others: Mapping[str, type[Hyp]] = MappingProxyType({}),
) -> Hyp:
    """Read a hyperparameter file.

    Args:
        path: of the YAML file.
        kind: the hyperparameters of the model's family.
        family: its name.
        others: those of the other families, by name.

    Raises:
        UserError: it names file, key and nearest key, or both families where the file is for another one.
    """
    path = Path(path)
    if path.name == "hyp.scratch-low.yaml" and not path.exists():
        fix = "leave --hyp out: its values are the defaults of YOLOv5's models"
        raise UserError("there is no such file", where=path, fix=fix)
    values = read_mapping(path, most_bytes=HYP_FILE_BYTES, what="a settings file")
    return hyp_of(values, path, kind, family, others)


def hyp_of(
    values: Mapping[str, Any],
    where: object,
    kind: type[Hyp] = Hyp,
    family: str = "",
    others: Mapping[str, type[Hyp]] = MappingProxyType({}),
) -> Hyp:
    """Hyperparameters from their values; what is not there keeps its default.

    ``where`` is what they are from, for people. The other arguments, and what is raised, as for `load_hyp`.
    """
    known = _names(kind)
    unlike = [key for key in values if key not in known]
    for other, theirs in others.items():
        if of_other := [str(key) for key in unlike if key in _names(theirs)]:
            raise UserError(
                f"this is for models of the family {other}, this one is of {family}, which has no "
                + ", ".join(of_other),
                where=where,
                fix=f"use those of {family}, or leave --hyp out",
            )
    if unlike:
        raise UserError(
            f"unknown hyperparameter {unlike[0]!r}", where=where, fix=nearest(str(unlike[0]), known)
        )
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(str(error), where=where) from None


def _names(kind: type[Hyp]) -> set[str]:
    return {f.name for f in fields(kind)}


def config_from_flags(given: dict[str, Any], hyp: Hyp | None = None) -> TrainConfig:
    """A config from flags, as `train_parser` names them, without ``resume``.

    Args:
        given: the flags. The file of ``--hyp`` is not read here: which it may be depends on the model.
        hyp: the hyperparameters; None as long as the model is not known.
    """
    given = dict(given)
    if "data" not in given:
        raise UserError("--data is missing", fix="name the data set: --data path/to/data.yaml")
    if not given.get("cfg") and not given.get("weights"):
        raise UserError("--cfg is missing", fix="name a model, such as --cfg yolov5n")
    given["hyp"] = hyp or Hyp()
    if (smoothing := getattr(hyp, "label_smoothing", None)) is not None:
        given.setdefault("label_smoothing", smoothing)
    if given.get("batch_size") == AUTO:
        given = {"micro_batch": AUTO, **given, "batch_size": round(given["hyp"].nbs)}
    for several in ("freeze", "log_to"):
        if several in given:
            given[several] = tuple(given[several])
    return TrainConfig(**given)
