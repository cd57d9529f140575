"""Flags that users know from YOLOv5, Ultralytics and launchers and that are not here: what to do instead."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

from horovod_yolo.core.errors import UserError

_LOGGERS = "leave it out: results.csv, steps.csv and TensorBoard events are written without it"
_LAUNCH = "start several ranks with --np N, horovod-yolo launch, horovodrun, mpirun or torchrun"
_HALF = "use --precision fp16"
_TUNE = "use horovod-yolo tune, which takes the other flags too: it searches hyperparameters"
_SHARE = re.compile(r"0?\.\d+")  # of the GPU's memory
_CHOSEN = ("-1", "auto")  # by memory
_DEFAULT = "leave it out: it is how this trains anyway"
_DEFAULT_LOOK = "leave it out: it is how this works anyway"

OF_TRAINING: Mapping[str, str] = {
    "--adam": "use --optimizer Adam",
    "--amp": "use --precision auto, fp16 or bf16",
    "--artifact-alias": _LOGGERS,
    "--bbox-interval": _LOGGERS,
    "--bucket": "leave it out: nothing is uploaded",
    "--cache-images": "use --cache",
    "--classes": "leave the other classes out of names in data.yaml, which must be a COCO or VOC set",
    "--dropout": "leave it out: the models here have no dropout",
    "--entity": "set WANDB_ENTITY, with --log-to wandb",
    "--evolve": _TUNE,
    "--evolve-population": _TUNE,
    "--half": _HALF,
    "--linear-lr": f"{_DEFAULT}; --cos-lr is the other way",
    "--local-rank": _LAUNCH,
    "--log-artifacts": _LOGGERS,
    "--log-imgs": _LOGGERS,
    "--ndjson-console": _LOGGERS,
    "--ndjson-file": _LOGGERS,
    "--nodes": _LAUNCH,
    "--nnodes": _LAUNCH,
    "--nproc-per-node": _LAUNCH,
    "--nosave": "leave it out: last.pt is what --resume needs",
    "--notest": "use --noval",
    "--nowandb": f"{_DEFAULT}; --log-to wandb is the other way",
    "--overlap-mask": "leave it out: there are no masks here",
    "--plots": f"{_DEFAULT}; --noplots is the other way",
    "--pretrained": "name the checkpoint: --weights best.pt",
    "--profile": "leave it out: steps.csv and results.csv have the times",
    "--quad": "leave it out, or use --multi-scale",
    "--resume-evolve": _TUNE,
    "--save": _DEFAULT,
    "--task": "leave it out: this trains detectors",
    "--upload-dataset": _LOGGERS,
    "--val": f"{_DEFAULT}; --noval is the other way",
    "--verbose": "use --log-dir for all messages",
    "--world-size": _LAUNCH,
}
OF_TUNING: Mapping[str, str] = {
    **OF_TRAINING,
    "--evolve": "leave it out: this searches hyperparameters, and --trials says how often",
    "--evolve-population": "leave it out: a search goes on with --resume",
    "--resume-evolve": "use --resume",
}
OF_VALIDATION: Mapping[str, str] = {
    "--agnostic-nms": "leave it out: boxes of one class only suppress each other",
    "--augment": "leave it out: images are scored as they are",
    "--cfg": "leave it out: the checkpoint knows its model",
    "--dnn": "leave it out: an ONNX file is run by ONNX Runtime",
    "--half": _HALF,
    "--plots": "leave it out: plots are the default, --noplots is the other way",
    "--save-conf": "use --save-json FILE, which has the scores",
    "--save-hybrid": "leave it out",
    "--save-txt": "use --save-json FILE",
    "--single-cls": "leave it out: a model whose one class is item is scored so",
    "--verbose": _DEFAULT,
}
_NO_FOLDER = "leave it out: horovod-yolo val writes plots and a page; here the numbers are returned"
OF_VALIDATION_CALLS: Mapping[str, str] = {
    **OF_VALIDATION,
    **dict.fromkeys(("--exist-ok", "--name", "--noplots", "--plots", "--project"), _NO_FOLDER),
}

OF_PREDICTION: Mapping[str, str] = {
    "--boxes": f"{_DEFAULT_LOOK}; --nosave is the other way",
    "--cfg": "leave it out: the weights know their model",
    "--dnn": "leave it out: an ONNX file is run by ONNX Runtime",
    "--fourcc": "leave it out: videos are written as MP4",
    "--retina-masks": "leave it out: there are no masks here",
    "--save": f"{_DEFAULT_LOOK}; --nosave is the other way",
    "--save-csv": "use --save-json or --save-txt",
    "--save-format": "leave it out: --save-txt writes YOLO's centre and size as shares of the image's",
    "--save-frames": "use --save-crop, --save-txt or --save-json, for each image of a video",
    "--show": "use --view-img",
    "--stream-buffer": "leave it out: of a camera or stream the newest image is taken, of a file every one",
    "--task": "leave it out: this finds objects",
    "--update": "leave it out: weights are taken as they are",
    "--verbose": _DEFAULT_LOOK,
    "--visualize": "leave it out: feature maps are not drawn; docs/predict.md shows a hook that sees them",
}

OF_EXPORT: Mapping[str, str] = {
    "--agnostic-nms": "leave it out: in a file, boxes of one class only suppress each other",
    "--device": "leave it out: files are written on the CPU, and run where you like",
    "--inplace": "leave it out: files are the same without it",
    "--keras": "use --format onnx",
    "--optimize": "leave it out: files for phones are not written",
    "--per-tensor": "leave it out",
    "--topk-all": "use --max-det",
    "--topk-per-class": "use --max-det",
    "--train": "leave it out: files are for detection",
    "--verbose": _DEFAULT_LOOK,
    "--workspace": "use trtexec: see docs/export.md",
}

_EACH = "call save(path) or plot() of each result"
OF_PREDICTION_CALLS: Mapping[str, str] = {
    **OF_PREDICTION,
    **dict.fromkeys(("--save", "--save-crop", "--save-txt", "--save-conf", "--show", "--view-img"), _EACH),
    **dict.fromkeys(("--project", "--name", "--exist-ok", "--nosave", "--save-json"), _EACH),
    "--hide-labels": "say plot(labels=False)",
    "--hide-conf": "say plot(conf=False)",
    "--line-thickness": "say plot(line_thickness=2)",
    "--line-width": "say plot(line_thickness=2)",
    **dict.fromkeys(("--np", "--hosts"), "leave it out, or use horovod-yolo predict, which has it"),
    "--precision": "leave it out, or use half=True",
    "--verbose": "leave it out: nothing is printed",
}


def instead(flag: str, foreign: Mapping[str, str]) -> str | None:
    """What to do instead of a flag that others have; None where they have none of this name."""
    return foreign.get("--" + flag.lstrip("-").replace("_", "-").lower()) if flag.startswith("--") else None


def batch_size(text: str) -> int:
    """Type of ``--batch-size``: images, neither YOLOv5's -1 nor Ultralytics' share of a memory."""
    if text.lower() in _CHOSEN or _SHARE.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text}, a batch size that is chosen by memory, is not supported: give the images of a batch "
            "over all ranks, such as 16 times their number"
        )
    return int(text)


def batch_size_or_auto(text: str) -> int | str:
    """`batch_size` of training: YOLOv5's -1 and ``auto`` are the nominal batch, in passes that fit."""
    if _SHARE.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text}, a share of the memory, is not supported: use auto, a batch of 64 in passes that fit"
        )
    return number_or_auto(text)


def number_or_auto(text: str) -> int | str:
    """A whole number, or ``auto``, which YOLOv5 writes -1."""
    try:
        return "auto" if text.lower() in _CHOSEN else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither a whole number nor auto") from None


class OneSize(argparse.Action):
    """Takes the one side of a square input where others take two numbers."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Set it, or raise `UserError`."""
        assert isinstance(values, list)
        if len(values) > 1:
            raise UserError(
                f"two sizes ({option_string} {' '.join(map(str, values))}) are not supported",
                fix=f"give one, {option_string} {max(values)}: images keep their shape, the rest is padded",
            )
        setattr(namespace, self.dest, values[0])


def device(text: str) -> str:
    """Type of ``--device``: ``cpu`` or numbers, also as torch writes them: ``cuda:0``, ``CPU``."""
    named = text.strip().lower()
    if named in ("mps", "xla", "tpu", "npu", "xpu", "auto", "-1", "-1,-1") or named.startswith(
        ("mps:", "npu:")
    ):
        raise argparse.ArgumentTypeError(
            f"{text} is not supported: use cpu, or GPU numbers such as 0 or 0,1, or leave it out"
        )
    if named in ("cuda", "gpu"):
        raise argparse.ArgumentTypeError(
            f"{text} names no GPU: give numbers such as 0 or 0,1, or leave it out"
        )
    return ",".join(part.strip().removeprefix("cuda:") for part in named.split(","))
