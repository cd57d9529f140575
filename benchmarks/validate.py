"""A whole validation against its forward passes alone, in images a second.

    python benchmarks/validate.py

Claim: what is around the forward passes (reading and fitting the images, decoding, losses, suppression,
matching, the average precision) costs at most 15 % of the rate. Validation images of blood cells at
../shared/data/bccd, or --data, 320 and 640 px, batches of 32; without --weights, yolov5n is trained on them
first, for 30 epochs, about five minutes. One thread and one data worker; forward passes get the same batches
from memory. By turns; the first pass, in which the workers start, does not count. A profile of another pass
says what the rest consists of. Takes ten minutes on two CPU cores.
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import ROOT, described, machine, parsed, parser, publish
from rectangles import trained

from horovod_yolo.assembly.build import build_evaluation_loader
from horovod_yolo.assembly.model import build_criterion, trained_model
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.core.precision import Precision
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.evaluation.evaluator import Evaluator
from horovod_yolo.families.zoo import recipe_of
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.fusing import fused
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.process.allocator import keep_freed_memory

SHARED = ROOT.parent / "shared"
SIZES = (320, 640)
BATCH = 32
PARTS = {  # the functions whose time is told apart, none within another
    "forward": "_forward",
    "waiting for data": "_batch",
    "folding of batch norm": "fused",
    "matching of losses": "match",
    "losses": "_losses",
    "decoding": "decode",
    "suppression": "non_max_suppression",
    "as arrays": "as_arrays",
    "accumulation": "add",
    "average precision": "_merged",
}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data", type=Path, default=SHARED / "data" / "bccd" / "data.yaml")
    p.add_argument("--weights", type=Path, nargs="+")
    p.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    p.add_argument("--workers", type=int, default=1)
    p.add_argument("--turns", type=int, default=5)
    p.add_argument("--epochs", type=int, default=30, help="of training, where there are no weights")
    args = parsed(p, turns=1, sizes=[320], epochs=1)
    torch.set_num_threads(1)
    keep_freed_memory()  # as all ranks do
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights or [trained(args.data, args.epochs, Path(folder))]
        rows = [measured(path, size, args) for path in weights for size in args.sizes]
    facts = machine()
    results = {"machine": facts, "workers": args.workers, "turns": args.turns, "rows": rows}
    publish("validate", results, table_of(rows, facts, args))


def measured(weights: Path, size: int, args: Any) -> dict[str, Any]:
    comm = LocalCommunicator()
    model, config, _ = trained_model(weights)
    annotations = shared_annotations(load_data_yaml(args.data), "val", comm, None)
    recipe, precision = recipe_of(model.name), Precision(device=torch.device("cpu"), dtype=torch.float32)
    loader = build_evaluation_loader(
        annotations,
        comm,
        imgsz=size,
        stride=max(model.strides),
        batch=BATCH,
        workers=args.workers,
        pin_memory=False,
        antialias=recipe.averages_areas,
    )
    evaluator = Evaluator(
        annotations=annotations,
        loader=loader,
        criterion=build_criterion(model, config),
        comm=comm,
        precision=precision,
        thresholds=Thresholds(iou=recipe.iou_of_validation),
        fitness_weights=recipe.fitness,
    )
    evaluation, folded = evaluator.run(model), fused(model.eval())
    batches = list(loader.epoch(0))
    ways: dict[str, Callable[[], object]] = {
        "whole": lambda: evaluator.run(model),
        "forward": lambda: forward(folded, [precision.images(batch) for batch in batches]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.turns):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begun)
    parts = profile(ways["whole"])
    evaluator.close()
    pairs = zip(seconds["forward"], seconds["whole"], strict=True)
    return {
        "model": model.name,
        "size": size,
        "images": len(annotations),
        "map50_95": evaluation.summary.map50_95,
        "images_per_s": {name: len(annotations) / statistics.median(some) for name, some in seconds.items()},
        "ratio": statistics.median(alone / whole for alone, whole in pairs),
        "profile_s": parts,
    }


@torch.no_grad()
def forward(model: Detector, batches: list[torch.Tensor]) -> None:
    for images in batches:
        model(images)


def profile(way: Callable[[], object]) -> dict[str, float]:
    """Seconds of the parts, and of all."""
    profiler = cProfile.Profile()
    profiler.runcall(way)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    found = dict.fromkeys(PARTS, 0.0)
    for (file, _, function), (_, _, _, cumulative, _) in stats.items():
        for part, name in PARTS.items():
            if function == name and "horovod_yolo" in file:
                found[part] += cumulative
    return {**found, "all": max(entry[3] for entry in stats.values())}


def table_of(rows: list[dict[str, Any]], facts: dict[str, Any], args: Any) -> str:
    lines = [
        "| model | size | mAP50-95 | whole, images/s | forward alone | ratio | beside the forward passes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = row["profile_s"]
        beside = [
            f"{part} {parts[part] / parts['all']:.1%}"
            for part in sorted(PARTS, key=lambda part: -parts[part])
            if part != "forward" and parts[part] >= 0.005 * parts["all"]
        ]
        rate = row["images_per_s"]
        lines.append(
            f"| {row['model']} | {row['size']} | {row['map50_95']:.3f} | {rate['whole']:.1f} "
            f"| {rate['forward']:.1f} | {row['ratio']:.2f} | {', '.join(beside)} |"
        )
    note = (
        f"{rows[0]['images']} images of {args.data.parent.name}, batches of {BATCH}, one thread and "
        f"{args.workers} data workers, medians of {args.turns} turns; shares are of a pass with a profiler. "
    )
    return "\n".join([*lines, "", note + described(facts)])


if __name__ == "__main__":
    main()
