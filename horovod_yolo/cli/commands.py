"""``train.py`` and the commands of ``horovod-yolo``: parsing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from horovod_yolo import __version__
from horovod_yolo.assembly.ending import DONE, MISTAKE, complain, leave
from horovod_yolo.cli.bench import bench_main
from horovod_yolo.cli.completion import completion_main
from horovod_yolo.cli.data import data_main
from horovod_yolo.cli.doctor import doctor_main
from horovod_yolo.cli.eval import eval_main
from horovod_yolo.cli.export import export_main
from horovod_yolo.cli.install_horovod import install_horovod_main
from horovod_yolo.cli.launch import launch_main
from horovod_yolo.cli.plan import plan_main
from horovod_yolo.cli.predict import predict_main
from horovod_yolo.cli.replay import replay_main
from horovod_yolo.cli.report import report_main
from horovod_yolo.cli.train import train_main
from horovod_yolo.cli.tune import tune_main
from horovod_yolo.cli.val import val_main
from horovod_yolo.config.load import nearest

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (lambda rest: train_main(rest, "horovod-yolo train"), "train a detector, or go on with a run"),
    "val": (val_main, "score weights on a data set"),
    "tune": (tune_main, "search hyperparameters, one run a trial"),
    "predict": (predict_main, "find objects in pictures, videos and streams"),
    "replay": (replay_main, "make steps of a run once more: are they the same?"),
    "export": (export_main, "write weights as ONNX, OpenVINO, TorchScript or safetensors"),
    "eval": (eval_main, "score a file of results in COCO's format"),
    "data": (data_main, "check, divide, convert or pack a data set; make the built-in one"),
    "launch": (launch_main, "start a command on many ranks and hosts"),
    "doctor": (doctor_main, "say what keeps hosts from training together"),
    "bench": (bench_main, "measure links and steps, for plan"),
    "plan": (plan_main, "time and price of a training on machines that you do not have yet"),
    "install-horovod": (install_horovod_main, "build Horovod for this Python"),
    "report": (report_main, "one page of several runs, side by side"),
    "completion": (lambda rest: completion_main(rest, COMMANDS), "print what completes commands in a shell"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """``horovod-yolo COMMAND ...``; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["detect"] and argv[1:2]:
        argv = argv[1:]  # yolo detect train ..., as Ultralytics' users may write it
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]][0](argv[1:])
    if argv and argv[0] in ("-V", "--version"):
        print(f"horovod_yolo {__version__}")
        return DONE
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return DONE if argv else MISTAKE
    complain(f"unknown command {argv[0]!r}. {nearest(argv[0], COMMANDS)}")
    return MISTAKE


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    first = "usage: horovod-yolo COMMAND ...   (each has --help)"
    example = "horovod-yolo train model=yolo11n data=digits epochs=5 imgsz=320"
    return "\n".join([first, "", *lines, "", f"On the built-in data set: {example}"])


def console() -> NoReturn:
    """The ``horovod-yolo`` script."""
    leave(main())
