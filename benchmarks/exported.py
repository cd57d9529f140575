"""Exported files score as the checkpoint does, and how fast each of them is.

    python benchmarks/exported.py

Claim: on the labels of BCCD's val, mAP50 and mAP50-95 of each file are within 1e-3 of the checkpoint's, of
files in half precision within 5e-3. What 8-bit integers cost is shown, without a claim. The checkpoint is a
yolov8n that was trained on the built-in digits and then on blood cells, or --weights. Hardware: two CPU cores
take about 25 minutes, with --weights 5. Needs the data set of blood cells at ../shared/data/bccd, or --data.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from common import ROOT, described, machine, parsed, parser, publish
from finetune import HYP, digits_weights, one_run

from horovod_yolo.assembly.export import ExportOptions, export
from horovod_yolo.assembly.looking import Looking
from horovod_yolo.assembly.ready import ready_here
from horovod_yolo.assembly.validate import ValOptions, validate
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.models.suppression import Thresholds

CLOSE, CLOSE_IN_HALF = 1e-3, 5e-3
ROUNDS = 40  # of one image each, of the checkpoint and of all files by turns
PAGE = ROOT / "docs" / "export.md"


class File(NamedTuple):
    """A file to write."""

    flags: str  # as on the command line
    options: dict[str, Any]
    allowed: float | None = CLOSE  # difference to the checkpoint's mAP
    rect: bool = False  # it takes any size


def files(args: argparse.Namespace) -> list[File]:
    """What is written. The thresholds of a file that suppresses are those of ``val``."""
    int8 = {"int8": True, "data": str(args.data)}
    nms = {"nms": True, "conf_thres": 0.001, "iou_thres": 0.7, "multi_label": True}
    return [
        File("onnx", {}),
        File("onnx --dynamic", {"dynamic": True}, rect=True),
        File("onnx --simplify", {"simplify": True}),
        File("onnx --nms", nms),
        File("onnx --half", {"half": True}, CLOSE_IN_HALF),
        File("onnx --int8", int8, None),
        File("openvino", {"format": ("openvino",)}),
        File("openvino --dynamic", {"format": ("openvino",), "dynamic": True}, rect=True),
        File("openvino --half", {"format": ("openvino",), "half": True}, CLOSE_IN_HALF),
        File("openvino --int8", {"format": ("openvino",), **int8}, None),
        File("torchscript", {"format": ("torchscript",)}),
        File("torchscript --dynamic", {"format": ("torchscript",), "dynamic": True}, rect=True),
    ]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "bccd" / "data.yaml")
    p.add_argument("--weights", type=Path, help="that find something in the data")
    p.add_argument("--start", type=Path, help="weights to fine-tune, in place of those of the digits")
    p.add_argument("--model", default="yolov8n")
    p.add_argument("--imgsz", type=int, default=224)
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--digits-epochs", type=int, default=14)
    p.add_argument("--digits-images", type=int, default=600)
    p.add_argument("--ranks", type=int, default=2)
    args = parsed(p, epochs=1, digits_epochs=1, digits_images=100)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = args.weights or trained(folder, args)
        expected = {rect: scored(weights, args, rect) for rect in (False, True)}
        rows = [
            one_file(folder / str(i), weights, file, expected[file.rect], args)
            for i, file in enumerate(files(args)[: 1 if args.quick else None])
        ]
        speeds(weights, rows, args)
        size = weights.stat().st_size
    found = {
        "machine": machine(),
        "model": args.model,
        "imgsz": args.imgsz,
        "checkpoint": {
            "squares": numbers(expected[False]),
            "rectangles": numbers(expected[True]),
            "bytes": size,
        },
        "files": rows,
        "wall_s": time.monotonic() - begun,
    }
    publish("exported", found, table_of(found), PAGE)


def trained(folder: Path, args: argparse.Namespace) -> Path:
    """Weights that find blood cells."""
    (folder / "hyp.yaml").write_text(HYP)
    start = args.start or digits_weights(folder, args)
    one_run(folder, "fine-tuned", 0, start, args)
    return folder / "fine-tuned-0" / "weights" / "best.pt"


def scored(weights: Path, args: argparse.Namespace, rect: bool, imgsz: int = 0) -> Evaluation:
    """On the labels of ``val``."""
    options = ValOptions(
        weights=str(weights), data=str(args.data), device="cpu", workers=0, rect=rect, imgsz=imgsz
    )
    return validate(options, LocalCommunicator())[0]


def numbers(evaluation: Evaluation) -> dict[str, float]:
    return {"mAP50": evaluation.summary.map50, "mAP50-95": evaluation.summary.map50_95}


def one_file(
    folder: Path, weights: Path, file: File, expected: Evaluation, args: argparse.Namespace
) -> dict[str, Any]:
    """Write and score it."""
    options = ExportOptions(weights=str(weights), imgsz=(args.imgsz,), out=str(folder))
    (path,) = export(replace(options, **file.options), LocalCommunicator())
    found, wanted = numbers(scored(path, args, file.rect)), numbers(expected)
    parts = list(path.iterdir()) if path.is_dir() else [path]
    row = {
        "flags": file.flags,
        **found,
        "difference": {name: found[name] - wanted[name] for name in found},
        "allowed": file.allowed,
        "bytes": sum(part.stat().st_size for part in parts),
        "path": str(path),
    }
    print(row, flush=True)
    return row


def speeds(weights: Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Add to each row how often the file looks at an image while the checkpoint does once, in one thread.

    All take turns, so that what else the machine does hits them alike.
    """
    torch.set_num_threads(1)
    how = Looking(thresholds=Thresholds(confidence=0.25, multi_label=False))
    finders = [ready_here(path, how, 0).find for path in (weights, *(Path(row["path"]) for row in rows))]
    picture = cv2.imread(str(next((args.data.parent / "images" / "val").iterdir())))
    image = np.ascontiguousarray(cv2.resize(picture, (args.imgsz, args.imgsz))[None, ..., ::-1])
    took: list[list[float]] = [[] for _ in finders]
    for _ in range(ROUNDS):
        for times, find in zip(took, finders, strict=True):
            begun = time.perf_counter()
            find(image)
            times.append(time.perf_counter() - begun)
    for row, times in zip(rows, took[1:], strict=True):
        row["speed"] = statistics.median(took[0]) / statistics.median(times)
        del row["path"]


def table_of(found: dict[str, Any]) -> str:
    checkpoint = found["checkpoint"]
    lines = [
        "| `--format` and flags | mAP50 | mAP50-95 | minus the checkpoint's | MB | speed |",
        "|---" * 6 + "|",
    ]
    for inputs in ("squares", "rectangles"):
        one = checkpoint[inputs]
        lines.append(
            f"| the checkpoint, on {inputs} | {one['mAP50']:.4f} | {one['mAP50-95']:.4f} | "
            f"| {checkpoint['bytes'] / 1e6:.1f} | 1 |"
        )
    for row in found["files"]:
        differences = ", ".join(f"{round(value, 4) + 0.0:+.4f}" for value in row["difference"].values())
        lines.append(
            f"| `{row['flags']}` | {row['mAP50']:.4f} | {row['mAP50-95']:.4f} | {differences} "
            f"| {row['bytes'] / 1e6:.1f} | {row['speed']:.2f} |"
        )
    claimed = [row for row in found["files"] if row["allowed"] is not None]
    met = all(abs(off) <= row["allowed"] for row in claimed for off in row["difference"].values())
    note = (
        f"{found['model']}, {found['imgsz']} px. Files of fixed size are held against the checkpoint on "
        f"squares, dynamic ones against it on rectangles. The goal of {CLOSE:g}, in half precision "
        f"{CLOSE_IN_HALF:g}, is {'reached' if met else 'NOT reached'}. Speed: images per second, one at "
        f"a time in one thread, as a multiple of the checkpoint's. {described(found['machine'])}"
    )
    return "\n".join(lines) + f"\n\n{note}\n"


if __name__ == "__main__":
    main()
