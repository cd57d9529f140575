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
from horovod_yolo.distributed.backends import note_engine


def val_main(argv: Sequence[str]) -> int:
    """Score a checkpoint on a data set, on as many ranks as were launched."""
    argv = spelled(argv, val_parser)
    note_engine(argv)
    if (code := on_own_ranks("val", argv, val_parser)) is not None:
        return code

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

    given = without_wish(vars(val_parser().parse_strictly(argv)))
    assert set(given) <= {f.name for f in fields(ValOptions)}
    return ValOptions(**given)


def val_parser() -> Parser:
    """All flags. Defaults stay absent: they are those of `ValOptions`."""
    from horovod_yolo.assembly.validate import SPLITS, ValOptions

    p = Parser(prog="horovod-yolo val", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    p.add_argument("--weights", required=True, help="best.pt or last.pt of a run")
    p.add_argument("--data", help="data.yaml; default: the one trained on")
    p.add_argument("--head", help=HEAD_HELP)
    p.add_argument("--task", choices=SPLITS, help="which split")
    p.foreign = foreign.OF_VALIDATION
    add_shared_flags(p)
    add_ranks_flags(p)
    p.add_argument("--rect", action=argparse.BooleanOptionalAction, help="rectangular inputs, the default")
    p.add_argument("--conf-thres", dest="conf_thres", type=float, help="least score of a detection, 0 to 1")
    p.add_argument(
        "--iou-thres", dest="iou_thres", type=float, help="boxes that overlap more are one, 0 to 1"
    )
    p.add_argument("--max-det", dest="max_det", type=int, help="detections of an image that count")
    p.add_argument("--workers", type=int, help="data-loading processes of each rank")
    p.add_argument("--precision", choices=get_args(Precision), help="of the forward pass")
    add_label_flags(p)
    p.add_argument("--cache-dir", dest="cache_dir", metavar="DIR", help="folder of the data index")
    p.add_argument("--save-json", dest="save_json", metavar="FILE", help="write COCO-format results")
    in_groups(p, OF_VALIDATION, {f.name: f.default for f in fields(ValOptions) if f.default is not MISSING})
    return with_words(p, "val")
