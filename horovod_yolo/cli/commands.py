"""``train.py`` and the commands of ``horovod-yolo``: parsing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from horovod_yolo import __version__
from horovod_yolo.assembly.ending import DONE, MISTAKE, complain, leave
from horovod_yolo.cli.bench import bench_main
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
from horovod_yolo.cli.val import val_main
from horovod_yolo.config.load import nearest


def main(argv: Sequence[str] | None = None) -> int:
    """``horovod-yolo COMMAND ...``; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "train": lambda rest: train_main(rest, "horovod-yolo train"),
        "val": val_main,
        "predict": predict_main,
        "replay": replay_main,
        "export": export_main,
        "eval": eval_main,
        "data": data_main,
        "launch": launch_main,
        "doctor": doctor_main,
        "bench": bench_main,
        "plan": plan_main,
        "install-horovod": install_horovod_main,
        "report": report_main,
    }
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    if argv and argv[0] in ("-V", "--version"):
        print(f"horovod_yolo {__version__}")
        return DONE
    usage = f"usage: horovod-yolo {{{','.join(commands)}}} ... (each has --help)"
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\n\n{usage}")
        return DONE if argv else MISTAKE
    complain(f"unknown command {argv[0]!r}. {nearest(argv[0], commands)}")
    return MISTAKE


def console() -> NoReturn:
    """The ``horovod-yolo`` script."""
    leave(main())
