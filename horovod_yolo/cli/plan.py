"""``horovod-yolo plan``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from horovod_yolo.cli.one_process import guarded
from horovod_yolo.config import foreign
from horovod_yolo.config.load import Parser
from horovod_yolo.config.schema import Precision
from horovod_yolo.core.errors import UserError
from horovod_yolo.planner import units

AT_LEAST_ONE = ("batch", "nodes", "gpus_per_node", "images", "epochs", "classes", "cores_per_node")


def plan_main(argv: Sequence[str]) -> int:
    """Say what a training takes on machines that are described by a few numbers."""

    def run() -> None:
        given = _given(plan_parser().parse_strictly(argv))
        files, as_json = given.pop("files", []), given.pop("json", False)
        from horovod_yolo.planner import show
        from horovod_yolo.planner.measured import read
        from horovod_yolo.planner.plan import Question, make_plan

        plan = make_plan(Question(**given), [read(path) for path in files])
        print(json.dumps(show.plan_json(plan), indent=2) if as_json else "\n".join(show.plan_lines(plan)))

    return guarded(run)


def plan_parser() -> Parser:
    """The flags. Defaults stay absent: they are those of `planner.plan.Question`."""
    p = Parser(prog="horovod-yolo plan", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    add = p.add_argument
    add("--cfg", "--model", dest="cfg", required=True, help="model: yolov5l, yolo11n, ...")
    add("--batch", "--batch-size", dest="batch", type=int, required=True, help="images, total over all ranks")
    add("--nodes", type=int, default=1, help="hosts (1)")
    add("--gpus-per-node", dest="gpus_per_node", type=int, default=1, help="ranks of a host (1)")
    add("--images", type=int, required=True, help="images to train on")
    add("--epochs", type=int, required=True)
    sizes: dict[str, Any] = {"dest": "imgsz", "type": int, "nargs": "+", "action": foreign.OneSize}
    add("--img", "--imgsz", "--img-size", **sizes, metavar="N", help="square input size in pixels (640)")
    add("--classes", type=int, help="of the data (80)")
    add("--device", help="h100, a100, ...; with --from: what it was measured on")
    add("--precision", choices=get_args(Precision), help="auto: as measured, else fp16")
    add("--bandwidth", help="of a node to the others, such as 200Gbit or 25GB")
    add("--latency", help="of a message between nodes, such as 5us")
    add("--allreduce", choices=("auto", "ring", "tree", "hierarchical"), help="auto: the fastest")
    add("--sync-bn", dest="sync_bn", action="store_true")
    add("--fusion-mb", dest="fusion_mb", type=float, help="most MB of a group of gradients (25)")
    add("--image-size", dest="image_bytes", metavar="SIZE", help="of a file, such as 160kB")
    add("--cores-per-node", dest="cores_per_node", type=int, help="for the loader")
    add("--storage-bandwidth", dest="storage_bandwidth", help="of all nodes together, such as 10GB")
    add("--price-per-gpu-hour", dest="price_per_gpu_hour", type=float, metavar="P")
    files = "JSON of `horovod-yolo bench comm|step`, one or more"
    add("--from", dest="files", type=Path, nargs="+", action="extend", metavar="FILE", help=files)
    add("--json", action="store_true", help="for programs: seconds, bytes, and the basis of each figure")
    return p


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, in bytes and seconds.

    Raises:
        UserError: a value that cannot be.
    """
    given = vars(args)
    for name in AT_LEAST_ONE:
        if given.get(name, 1) < 1:
            raise UserError(f"--{name.replace('_', '-')} {given[name]}", fix="give 1 or more")
    if given.get("imgsz", 32) < 32:
        raise UserError(f"--img {given['imgsz']}", fix="give 32 or more")
    price, fusion = given.get("price_per_gpu_hour", 0.0), given.get("fusion_mb", 1.0)
    if not 0 <= price < float("inf"):
        raise UserError(f"--price-per-gpu-hour {price}", fix="give 0 or more")
    if not 0 < fusion <= 128:
        raise UserError(f"--fusion-mb {fusion}", fix="give more than 0, up to 128")
    read: dict[str, Callable[[str, str], float]] = {
        "bandwidth": units.bandwidth,
        "latency": units.duration,
        "image_bytes": units.data_size,
        "storage_bandwidth": units.bandwidth,
    }
    flags = {"image_bytes": "--image-size", "storage_bandwidth": "--storage-bandwidth"}
    for name in read.keys() & given.keys():
        given[name] = read[name](given[name], flags.get(name, f"--{name}"))
    return given
