"""``horovod-yolo export``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from horovod_yolo.assembly.job import on_ranks
from horovod_yolo.config import foreign
from horovod_yolo.config.load import HEAD_HELP, Parser
from horovod_yolo.config.words import with_words


def export_main(argv: Sequence[str]) -> int:
    """Write a trained model for other programs."""

    def parse() -> Any:
        return _options(argv)

    def job(comm: Any, options: Any) -> None:
        from horovod_yolo.assembly.export import export

        for path in export(options, comm):
            if comm.rank == 0:
                print(path, flush=True)

    return on_ranks(parse, job)


def _options(argv: Sequence[str]) -> Any:
    from horovod_yolo.assembly.export import ExportOptions

    given = vars(export_parser().parse_strictly(argv))
    assert set(given) <= {f.name for f in fields(ExportOptions)}
    if "imgsz" in given:
        given["imgsz"] = tuple(given["imgsz"])
    return ExportOptions(**given)


def export_parser() -> Parser:
    """All flags. Defaults stay absent: they are those of `ExportOptions`."""
    p = Parser(prog="horovod-yolo export", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    p.foreign = foreign.OF_EXPORT
    add = p.add_argument
    add("--weights", "--model", dest="weights", required=True, help="best.pt, last.pt or published weights")
    add(
        *("--format", "--include"),
        dest="format",
        type=_words,
        metavar="F,...",
        help="onnx (default), openvino, torchscript, safetensors; several with commas",
    )
    add(
        *("--imgsz", "--img", "--img-size"),
        dest="imgsz",
        type=int,
        nargs="+",
        metavar="N",
        help="size of the input, or height and width, pixels; default: as trained",
    )
    add("--batch-size", "--batch", dest="batch_size", type=int, help="images of an input (1)")
    add("--dynamic", action="store_true", help="any number of images, any size in whole strides")
    add("--half", action="store_true", help="float16 weights")
    add(
        "--int8",
        action="store_true",
        help="8-bit convolutions (ONNX, OpenVINO), scaled by --data; says the mAP lost",
    )
    add("--data", help="with --int8: data.yaml; its train scales, its val scores")
    add("--simplify", action="store_true", help="let onnxslim make the graph smaller")
    add("--opset", type=int, help="version of ONNX's operators (17)")
    add("--nms", action="store_true", help="suppression is part of the graph")
    add("--conf-thres", "--conf", dest="conf_thres", type=float, help="with --nms: least score (0.25)")
    overlap = "with --nms: boxes may overlap so (0.45; models without anchors: 0.7)"
    add("--iou-thres", "--iou", dest="iou_thres", type=float, help=overlap)
    add("--max-det", dest="max_det", type=int, help="with --nms: detections of an image (300)")
    add(
        "--multi-label",
        dest="multi_label",
        action="store_true",
        help="with --nms: a box counts for each of its classes, as in validation, not for its best only",
    )
    add("--head", help=HEAD_HELP)
    add("--out", metavar="DIR", help="folder of the files; default: that of the weights")
    return with_words(p, "export")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().lower() for word in text.split(",") if word.strip())
