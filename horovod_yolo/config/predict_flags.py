"""The flags of ``horovod-yolo predict``: those of YOLOv5's ``detect.py``, and few more."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

from horovod_yolo.config import foreign
from horovod_yolo.config.help import OF_PREDICTION, in_groups
from horovod_yolo.config.load import DEVICE_HELP, HEAD_HELP, Parser, add_engine_flag, add_ranks_flags
from horovod_yolo.config.schema import Precision
from horovod_yolo.config.words import with_words
from horovod_yolo.core.errors import UserError


def predict_parser() -> Parser:
    """All flags. Defaults stay absent: they are those of ``PredictOptions``."""
    p = Parser(prog="horovod-yolo predict", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    p.foreign = foreign.OF_PREDICTION
    add = p.add_argument
    add("--weights", "--model", dest="weights", required=True, nargs="+", help="best.pt or last.pt of a run")
    add(
        "--source",
        required=True,
        nargs="+",
        action="extend",
        metavar="S",
        help="pictures, videos, folders, globs, .txt lists, cameras (0), streams (rtsp://...); one or more",
    )
    _add_search_flags(p)
    _add_output_flags(p)
    in_groups(p, OF_PREDICTION, {})
    return with_words(p, "predict")


def predict_flags(argv: Sequence[str] | None) -> dict[str, Any]:
    """What was given, by the names of ``PredictOptions``.

    Raises:
        UserError: a mistake in the flags.
    """
    given = vars(predict_parser().parse_strictly(argv))
    weights = given["weights"]
    if len(weights) > 1:
        raise UserError(
            f"--weights {' '.join(weights)}: several at once are not supported",
            fix="give one, and run it for each",
        )
    given["weights"] = weights[0]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _add_search_flags(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--head", help=HEAD_HELP)
    add_engine_flag(p)
    add_ranks_flags(p)
    add("--data", help="data.yaml, for an exported file that does not name its classes")
    add(
        *("--imgsz", "--img", "--img-size"),
        dest="imgsz",
        type=int,
        nargs="+",
        action=foreign.OneSize,
        metavar="N",
        help="longest side of an image in the network's input, pixels; default: as trained",
    )
    add("--rect", action=argparse.BooleanOptionalAction, help="the smallest rectangular inputs, the default")
    add(
        *("--batch-size", "--batch"),
        dest="batch_size",
        type=int,
        metavar="N",
        help="images of one shape that go through the network of a rank at once (8)",
    )
    add("--conf-thres", "--conf", dest="conf_thres", type=float, help="least score of a detection (0.25)")
    overlap = "boxes that overlap more are one (0.45; models without anchors: 0.7)"
    add("--iou-thres", "--iou", dest="iou_thres", type=float, help=overlap)
    add("--max-det", dest="max_det", type=int, help="detections of an image (1000)")
    add("--classes", type=int, nargs="+", metavar="N", help="only these classes, by number: --classes 0 2 3")
    add("--agnostic-nms", dest="agnostic_nms", action="store_true", help="other classes suppress too")
    add(
        "--augment",
        action="store_true",
        help="look in three sizes, once mirrored: slower",
    )
    add("--device", type=foreign.device, help=DEVICE_HELP)
    add("--precision", choices=get_args(Precision), help="of the forward pass (auto)")
    add("--half", action="store_true", help="--precision fp16, for GPUs")
    add(
        "--vid-stride",
        dest="vid_stride",
        type=int,
        metavar="N",
        help="of N images of a video, look at one (1)",
    )
    add(
        "--reconnect",
        type=float,
        metavar="S",
        help="seconds to wait for a camera or stream that falls silent (30)",
    )


def _add_output_flags(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add(
        "--view-img",
        "--view",
        dest="view_img",
        action="store_true",
        help="show results; a key: the next picture, q: the end",
    )
    add("--save-txt", dest="save_txt", action="store_true", help="labels/*.txt: class, cx cy w h as shares")
    add(
        "--save-conf",
        dest="save_conf",
        action="store_true",
        help="with --save-txt: scores behind the rows",
    )
    add("--save-json", dest="save_json", action="store_true", help="predictions.json, COCO's results format")
    add("--save-crop", dest="save_crop", action="store_true", help="crops/<class>/*.jpg: each object")
    add("--nosave", action="store_true", help="write no pictures and videos")
    add("--line-thickness", dest="line_thickness", type=int, metavar="PX", help="of boxes; default: by size")
    add("--hide-labels", dest="hide_labels", action="store_true", help="draw boxes alone")
    add("--hide-conf", dest="hide_conf", action="store_true", help="draw no scores")
    add("--project", help="folder of the result folders (runs/detect)")
    add("--name", help="of the result folder (exp)")
    add("--exist-ok", dest="exist_ok", action="store_true", help="write into a folder that is there")
