"""``horovod-yolo data``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.job import on_ranks
from horovod_yolo.cli.data_tools import check_main, convert_main, split_main, stats_main
from horovod_yolo.cli.one_process import guarded
from horovod_yolo.config.load import Parser, add_label_flags, nearest
from horovod_yolo.core.errors import UserError


def data_main(argv: Sequence[str]) -> int:
    """Make the built-in data set; check, divide, convert or pack one; or import weights."""
    own_parsers: dict[str, Callable[[Sequence[str]], int]] = {
        "check": check_main,
        "stats": stats_main,
        "split": split_main,
        "convert": convert_main,
        "pack": _pack_main,
        "import-weights": _import_main,
    }
    if argv and argv[0] in own_parsers:
        return own_parsers[argv[0]](argv[1:])

    def run() -> None:
        p = Parser(prog="horovod-yolo data", allow_abbrev=False)
        kinds = p.add_subparsers(dest="kind", required=True, parser_class=Parser)
        kinds.add_parser(
            "check", help="scan a data set as a new run would, on as many ranks as were launched"
        )
        kinds.add_parser("stats", help="a page of label statistics and sample pictures")
        kinds.add_parser("split", help="divide the images of a data set anew: train, val and maybe test")
        kinds.add_parser("convert", help="write a data set as YOLO, COCO or VOC has it, or as a list")
        kinds.add_parser("pack", help="write a data set as a few large tar files that runs read in place")
        kinds.add_parser("import-weights", help="write another trainer's weights as a checkpoint of ours")
        digits = kinds.add_parser("digits", help="handwritten digits on photographs, made on the spot")
        digits.add_argument("--out", required=True, type=Path, help="folder to make")
        images = "of training and validation together; default: 600"
        digits.add_argument("--images", type=int, default=600, metavar="N", help=images)
        size = "of a side, in pixels; default: 320"
        digits.add_argument("--size", type=int, default=320, metavar="N", help=size)
        seed = "another one, other images; default: 0"
        digits.add_argument("--seed", type=int, default=0, metavar="N", help=seed)
        if argv and not argv[0].startswith("-") and argv[0] not in kinds.choices:
            raise UserError(f"unknown data command {argv[0]!r}", fix=nearest(argv[0], kinds.choices))
        args = p.parse_strictly(argv)
        from horovod_yolo.data.digits import make_digits

        make_digits(args.out, args.images, args.size, args.seed)
        print(f"{args.images} images in {args.out}; train with --data {args.out / 'data.yaml'}")

    return guarded(run)


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


def _pack_main(argv: Sequence[str]) -> int:
    """Write a data set as a few large files, on as many ranks as were launched."""

    def parse() -> Any:
        from horovod_yolo.assembly.packing import PackOptions

        p = Parser(prog="horovod-yolo data pack", allow_abbrev=False, argument_default=argparse.SUPPRESS)
        p.add_argument("data", metavar="DATA", help="data.yaml of the loose files")
        p.add_argument("--to", required=True, type=Path, metavar="DIR", help="empty or new folder")
        p.add_argument("--shard", metavar="SIZE", help="images of a tar file, such as 1GB (the default)")
        add_label_flags(p)
        p.add_argument("--cache-dir", dest="cache_dir")
        return PackOptions(**vars(p.parse_strictly(argv)))

    def job(comm: Any, options: Any) -> None:
        from horovod_yolo.assembly.packing import pack_data

        images, shards = pack_data(options, comm)
        if comm.rank == 0:
            where = options.to / "data.yaml"
            print(f"{images} images in {shards} tar files; train with --data {where}", flush=True)

    return on_ranks(parse, job)
