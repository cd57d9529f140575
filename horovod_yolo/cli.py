"""The command line, ``train.py`` and ``horovod-yolo train|val|predict|eval|data|launch|doctor``: parsing."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from horovod_yolo import __version__
from horovod_yolo.assembly.elastic_job import on_elastic_ranks
from horovod_yolo.assembly.ending import DONE, MISTAKE, complain, leave
from horovod_yolo.assembly.job import (
    log_to_files,
    on_ranks,
    on_ranks_until_stopped,
    require_fitting_launch,
)
from horovod_yolo.config import foreign
from horovod_yolo.config.load import (
    HEAD_HELP,
    Parser,
    add_label_flags,
    add_shared_flags,
    config_from_flags,
    nearest,
    train_parser,
)
from horovod_yolo.config.predict_flags import predict_flags
from horovod_yolo.config.schema import Precision, TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.launchers.found import launcher

if TYPE_CHECKING:
    from horovod_yolo.launch.plan import LaunchPlan


def main(argv: Sequence[str] | None = None) -> int:
    """``horovod-yolo COMMAND ...``; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "train": lambda rest: train_main(rest, "horovod-yolo train"),
        "val": val_main,
        "predict": predict_main,
        "eval": eval_main,
        "data": data_main,
        "launch": launch_main,
        "doctor": doctor_main,
    }
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    if argv and argv[0] in ("-V", "--version"):
        print(f"horovod_yolo {__version__}")
        return DONE
    usage = f"usage: horovod-yolo {{{','.join(commands)}}} ... (each has --help)"
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__.splitlines()[0] if __doc__ else ''}\n\n{usage}")
        return DONE if argv else MISTAKE
    complain(f"unknown command {argv[0]!r}. {nearest(argv[0], commands)}")
    return MISTAKE


def console() -> NoReturn:
    """The ``horovod-yolo`` script."""
    leave(main())


def train_main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Train, on as many ranks as were launched; returns the exit code."""

    def parse() -> dict[str, Any]:
        given = vars(train_parser(prog).parse_strictly(argv))
        if given.get("resume", "auto") == "auto":
            config_from_flags({name: value for name, value in given.items() if name != "resume"})
        require_fitting_launch(given.get("elastic", False))
        return {"elastic_wait": TrainConfig.elastic_wait, **given} if launcher().restarts_ranks else given

    def start(comm: Any, given: dict[str, Any]) -> Any:
        from horovod_yolo.assembly.run import start_run

        flags = {name: value for name, value in given.items() if name != "resume"}
        return start_run(given.get("resume", ""), flags, comm)

    def job(comm: Any, given: dict[str, Any], stop: Any) -> None:
        log_to_files(comm, given.get("log_dir", ""))
        finish(start(comm, given), comm, stop)

    def elastic_job(comm: Any, given: dict[str, Any], stop: Any, kept: Any) -> None:
        from horovod_yolo.assembly.elastic import elastic_run

        log_to_files(comm, given.get("log_dir", ""))
        finish(elastic_run(lambda: start(comm, given), kept, comm), comm, stop)

    def finish(run: Any, comm: Any, stop: Any) -> None:
        from horovod_yolo.assembly.train import train

        results = train(run, comm, stop)
        if comm.rank == 0:
            metrics = results["metrics"]
            print(f"mAP50 {metrics['mAP50']:.4f}  mAP50-95 {metrics['mAP50-95']:.4f}")
            print(f"weights {run.folder}/weights/best.pt  table {run.folder}/results.csv")
            if not run.config.noplots:
                print(f"curves  {run.folder}/results.png  report {run.folder}/report.html", flush=True)

    if launcher().restarts_ranks:
        return on_elastic_ranks(parse, elastic_job)
    return on_ranks_until_stopped(parse, job)


def val_main(argv: Sequence[str]) -> int:
    """Score a checkpoint on a data set, on as many ranks as were launched."""

    def parse() -> Any:
        return _val_options(argv)

    def job(comm: Any, options: Any) -> None:
        from horovod_yolo.assembly.validate import validate
        from horovod_yolo.metrics.coco_results import format_classes

        evaluation, names = validate(options, comm)
        if comm.rank == 0:
            print(format_classes(evaluation.summary, names))
            print(f"up to {options.max_det} detections an image are counted")
            if evaluation.head:
                print(f"head: {evaluation.head}")
            print(evaluation.inputs, flush=True)

    return on_ranks(parse, job)


def _val_options(argv: Sequence[str]) -> Any:
    from horovod_yolo.assembly.validate import ValOptions

    p = Parser(prog="horovod-yolo val", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    p.add_argument("--weights", required=True, help="best.pt or last.pt of a run")
    p.add_argument("--data", help="data.yaml; default: the one trained on")
    p.add_argument("--head", help=HEAD_HELP)
    p.add_argument("--task", choices=("train", "val", "test"), help="which split")
    p.foreign = foreign.OF_VALIDATION
    add_shared_flags(p)
    p.add_argument("--rect", action=argparse.BooleanOptionalAction, help="rectangular inputs, the default")
    p.add_argument("--conf-thres", dest="conf_thres", type=float)
    p.add_argument("--iou-thres", dest="iou_thres", type=float)
    p.add_argument("--max-det", dest="max_det", type=int)
    p.add_argument("--workers", type=int)
    p.add_argument("--precision", choices=get_args(Precision))
    add_label_flags(p)
    p.add_argument("--cache-dir", dest="cache_dir")
    p.add_argument("--save-json", dest="save_json", metavar="FILE", help="write COCO-format results")
    given = vars(p.parse_strictly(argv))
    assert set(given) <= {f.name for f in fields(ValOptions)}
    return ValOptions(**given)


def predict_main(argv: Sequence[str]) -> int:
    """Find objects in pictures, videos and streams, on as many ranks as were launched."""

    def parse() -> Any:
        given = predict_flags(argv)
        from horovod_yolo.assembly.predict import PredictOptions

        return PredictOptions(**given)

    def job(comm: Any, options: Any, stop: Any) -> None:
        from horovod_yolo.assembly.predict import predict

        predict(options, comm, stop)

    return on_ranks_until_stopped(parse, job)


def eval_main(argv: Sequence[str]) -> int:
    """Score a COCO-format results file; needs neither a model nor ranks."""

    def run() -> None:
        p = Parser(prog="horovod-yolo eval", allow_abbrev=False)
        p.add_argument("--gt", required=True, type=Path, help="COCO annotations")
        p.add_argument(
            "--dt", required=True, type=Path, help="COCO results: image_id, category_id, bbox, score"
        )
        p.add_argument("--json", action="store_true", help="print JSON instead of the twelve lines")
        args = p.parse_strictly(argv)
        from horovod_yolo.metrics.coco_results import evaluate_files, format_table, to_json

        found = evaluate_files(args.gt, args.dt)
        if args.json:
            print(json.dumps(to_json(found.summary, [c.name for c in found.categories]), indent=2))
        else:
            print(format_table(found.summary))

    return _guarded(run)


def data_main(argv: Sequence[str]) -> int:
    """Make the built-in data set, check one, or import weights."""
    if argv[:1] == ["check"]:
        return _check_main(argv[1:])
    if argv[:1] == ["import-weights"]:
        return _import_main(argv[1:])

    def run() -> None:
        p = Parser(prog="horovod-yolo data", allow_abbrev=False)
        kinds = p.add_subparsers(dest="kind", required=True, parser_class=Parser)
        kinds.add_parser(
            "check", help="scan a data set as a new run would, on as many ranks as were launched"
        )
        kinds.add_parser("import-weights", help="write another trainer's weights as a checkpoint of ours")
        digits = kinds.add_parser("digits", help="handwritten digits on photographs, made on the spot")
        digits.add_argument("--out", required=True, type=Path, help="folder to make")
        digits.add_argument("--images", type=int, default=600)
        digits.add_argument("--size", type=int, default=320, help="pixels of a side")
        digits.add_argument("--seed", type=int, default=0)
        args = p.parse_strictly(argv)
        from horovod_yolo.data.digits import make_digits

        make_digits(args.out, args.images, args.size, args.seed)
        print(f"{args.images} images in {args.out}; train with --data {args.out / 'data.yaml'}")

    return _guarded(run)


def _import_main(argv: Sequence[str]) -> int:
    """Write another trainer's weights as a checkpoint of ours."""

    def parse() -> Any:
        p = Parser(prog="horovod-yolo data import-weights", allow_abbrev=False)
        p.add_argument("source", type=Path, metavar="IN", help="yolov5s.pt, a best.pt, safetensors, ...")
        p.add_argument("target", type=Path, metavar="OUT", help="the file to write")
        p.add_argument("--cfg", default="", help="the model, where the file may be of several")
        p.add_argument("--data", default="", help="data.yaml, whose names a file without names gets")
        return p.parse_strictly(argv)

    def job(comm: Any, args: Any) -> None:
        from horovod_yolo.assembly.given_weights import import_weights

        model, classes = import_weights(args.source, args.target, comm, args.cfg, args.data)
        if comm.rank == 0:
            print(f"{model} with {classes} classes in {args.target}", flush=True)

    return on_ranks(parse, job)


def _check_main(argv: Sequence[str]) -> int:
    """Say what a run would say of a data set; 2 where it would end."""

    def parse() -> Any:
        from horovod_yolo.assembly.check import CheckOptions

        p = Parser(prog="horovod-yolo data check", allow_abbrev=False, argument_default=argparse.SUPPRESS)
        p.add_argument("--data", required=True, help="data.yaml")
        add_label_flags(p)
        p.add_argument("--cache-dir", dest="cache_dir")
        return CheckOptions(**vars(p.parse_strictly(argv)))

    def job(comm: Any, options: Any) -> None:
        from horovod_yolo.assembly.check import check_data

        splits = check_data(options, comm)
        if comm.rank == 0:
            print(f"{options.data}: a run can train on it ({', '.join(splits)})", flush=True)

    return on_ranks(parse, job)


def launch_main(argv: Sequence[str]) -> int:
    """Start a job on several ranks and hosts. With train and predict it stays to pass signals on."""

    def run() -> int:
        from horovod_yolo.launch import command

        own, words = command.split(argv)
        args = command.parser().parse_strictly(own)
        plan, notes = command.make_plan(args, words)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        if args.dry_run:
            print(("cd / && " if plan.folder else "") + shlex.join(plan.argv()))
            return DONE
        from horovod_yolo.launch import supervise
        from horovod_yolo.launch.plan import environment

        sys.stderr.flush()
        environ = environment(os.environ)
        if plan.folder:
            os.chdir("/")
        stays = words[0] in ("train", "predict")
        return supervise.run(plan, environ) if stays else _become(plan, environ)

    return _guarded(run)


def _become(plan: LaunchPlan, environ: dict[str, str]) -> NoReturn:
    """Be the launcher, without this process's input: mpirun would swallow what the script around it reads."""
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.execve(plan.tool, plan.argv(), environ)


def doctor_main(argv: Sequence[str]) -> int:
    """Say what keeps hosts from training together; 2 where something does."""

    def run() -> int:
        args = _doctor_parser().parse_strictly(argv)
        from horovod_yolo.doctor.collect import Questions, default_folders
        from horovod_yolo.doctor.examine import examine
        from horovod_yolo.launch import command, network, plan

        given, notes = network.merged(command.given_hosts(args))
        folders = default_folders(args.project, args.cache_dir)
        questions = Questions(args.data or "", folders, args.timeout)
        interface = plan.checked_interface(args.interface)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        from rich.console import Console

        with Console(stderr=True).status("") as status:
            found = examine(given, questions, interface, status.update)
        if args.json:
            print(json.dumps(found.as_json(), indent=2))
        else:
            from horovod_yolo.doctor.table import show

            show(found, Console())
        return DONE if found.healthy else MISTAKE

    return _guarded(run)


def _doctor_parser() -> Parser:
    p = Parser(prog="horovod-yolo doctor", allow_abbrev=False)
    hosts = p.add_mutually_exclusive_group()
    hosts.add_argument(
        "--hosts", "-H", default="localhost", metavar="LIST", help="host1:4,host2:4; default: this host only"
    )
    hosts.add_argument("--hostfile", type=Path, metavar="FILE", help="a host a line: see hostfiles/README.md")
    p.add_argument("--data", metavar="FILE", help="data.yaml: is the data set on all hosts, and the same")
    p.add_argument("--project", default="runs/train", metavar="DIR", help="folder of the run folders")
    p.add_argument("--cache-dir", dest="cache_dir", metavar="DIR", help="folder of the index and image cache")
    p.add_argument("--interface", metavar="IF", help="network interface of the job that is tried")
    p.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds for each host's answer")
    p.add_argument("--json", action="store_true", help="everything that was found, for scripts")
    return p


def _guarded(run: Callable[[], int | None]) -> int:
    """Exit code of something that runs in one process."""
    try:
        return run() or DONE
    except UserError as error:
        complain(str(error))
        return MISTAKE


if __name__ == "__main__":
    console()
