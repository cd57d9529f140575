"""``horovod-yolo val``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args

from horovod_yolo.assembly.job import on_ranks
from horovod_yolo.cli.own_ranks import on_own_ranks, without_wish
from horovod_yolo.config import foreign
from horovod_yolo.config.help import OF_VALIDATION, in_groups
from horovod_yolo.config.load import HEAD_HELP, Parser, add_label_flags, add_ranks_flags, add_shared_flags
from horovod_yolo.config.schema import Precision
from horovod_yolo.config.words import spelled, with_words
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.backends import note_engine

USUAL_OVERLAP = "0.6; models without anchors: 0.7"


def val_main(argv: Sequence[str]) -> int:
    """Score a checkpoint on a data set, on as many ranks as were launched."""
    argv = spelled(argv, val_parser)
    note_engine(argv)
    if (code := on_own_ranks("val", argv, val_parser)) is not None:
        return code

    def parse() -> Any:
        return _val_options(argv)

    def job(comm: Any, options: Any) -> None:
        from horovod_yolo.assembly.run_folder import discard_if_empty
        from horovod_yolo.assembly.val_folder import write_validation
        from horovod_yolo.assembly.validate import validate
        from horovod_yolo.metrics.coco_results import format_classes

        options, place = options
        folder = place.made(comm)
        try:
            evaluation, names = validate(options, comm)
        except UserError:
            if folder is not None and comm.rank == 0:
                discard_if_empty(folder)
            raise
        if comm.rank == 0:
            print(format_classes(evaluation.summary, names))
            print(f"up to {options.max_det} detections an image are counted")
            if evaluation.head:
                print(f"head: {evaluation.head}")
            print(evaluation.inputs, flush=True)
            if folder is not None:
                write_validation(folder, evaluation, names, options, comm.size)
                print(f"plots and page: {folder}", flush=True)

    return on_ranks(parse, job)


def _val_options(argv: Sequence[str]) -> Any:
    """What to score and how, and where the numbers go."""
    from horovod_yolo.assembly.val_folder import ValPlace
    from horovod_yolo.assembly.validate import ValOptions

    given = without_wish(vars(val_parser().parse_strictly(argv)))
    places = {f.name for f in fields(ValPlace)}
    place = ValPlace(**{name: value for name, value in given.items() if name in places})
    return ValOptions(**{name: value for name, value in given.items() if name not in places}), place


def val_parser() -> Parser:
    """All flags. Defaults stay absent: they are those of `ValOptions`."""
    from horovod_yolo.assembly.val_folder import ValPlace
    from horovod_yolo.assembly.validate import SPLITS, ValOptions

    p = Parser(prog="horovod-yolo val", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    p.add_argument("--weights", required=True, help="best.pt or last.pt of a run")
    p.add_argument("--data", help="data.yaml; default: the one trained on")
    p.add_argument("--head", help=HEAD_HELP)
    p.add_argument("--task", choices=SPLITS, help="which split")
    p.foreign = foreign.OF_VALIDATION
    add_shared_flags(p)
    add_ranks_flags(p)
    p.add_argument(
        "--slices", type=int, metavar="V", help="parts of a batch with a pass each; 0: as many as ranks"
    )
    p.add_argument("--rect", action=argparse.BooleanOptionalAction, help="rectangular inputs, the default")
    p.add_argument("--conf-thres", dest="conf_thres", type=float, help="least score of a detection, 0 to 1")
    p.add_argument(
        "--iou-thres", dest="iou_thres", type=float, help="boxes that overlap more are one, 0 to 1"
    )
    p.add_argument("--max-det", dest="max_det", type=int, help="detections of an image that count")
    p.add_argument("--workers", type=int, help="data-loading processes of each rank; 0: the rank itself")
    p.add_argument("--precision", choices=get_args(Precision), help="of the forward pass")
    add_label_flags(p)
    p.add_argument(
        "--cache-dir",
        dest="cache_dir",
        metavar="DIR",
        help="folder of the data index; default: below ~/.cache",
    )
    p.add_argument("--save-json", dest="save_json", metavar="FILE", help="write COCO-format results")
    _add_place_flags(p)
    flags = (*fields(ValOptions), *fields(ValPlace))
    defaults = {f.name: f.default for f in flags if f.default is not MISSING}
    in_groups(p, OF_VALIDATION, {**defaults, "imgsz": "as trained", "iou_thres": USUAL_OVERLAP})
    return with_words(p, "val")


def _add_place_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--project", metavar="DIR", help="folder of the folders of results")
    p.add_argument("--name", help="of the folder; a number is added where it exists")
    p.add_argument("--exist-ok", dest="exist_ok", action="store_true", help="use the folder that is there")
    p.add_argument("--noplots", action="store_true", help="no folder: only print the numbers")
