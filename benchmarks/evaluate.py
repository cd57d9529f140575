"""AP of a validation set as large as COCO's: this project's against pycocotools' and faster-coco-eval's.

    python benchmarks/evaluate.py

5,000 images, 36,000 objects, 480,000 detections, 80 classes, made at random. Each program begins with its
own objects in memory and ends with the twelve numbers, which must be equal to 1e-9; the time is that of the
CPU, and what the others need to index their objects is given apart. Memory is what a process that does
nothing else grows by. faster-coco-eval's row needs ``pip install faster-coco-eval``. Takes 5 minutes.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import described, machine, parsed, parser, publish
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from horovod_yolo.metrics.accumulator import COCO_LIMITS, DetectionAccumulator
from horovod_yolo.metrics.matching import ImageDetections, ImageTruths

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
Sample = tuple[ImageTruths, ImageDetections]
Files = tuple[dict[str, Any], list[dict[str, Any]]]


@dataclass(frozen=True)
class Found:
    """The twelve numbers, and CPU seconds for them and for what is indexed before."""

    numbers: list[float]
    seconds: float
    index_s: float


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--images", type=int, default=5000)
    p.add_argument("--turns", type=int, default=3)
    args = parsed(p, images=100, turns=1)
    samples = made(args.images)
    files = as_files(samples)
    ways: dict[str, Callable[[], Found]] = {
        "this project": lambda: ours([samples]),
        "this project, split over 4 ranks": lambda: ours([samples[rank::4] for rank in range(4)]),
        "pycocotools": lambda: theirs(files, COCO, COCOeval),
    }
    with contextlib.suppress(ImportError):
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster

        ways["faster-coco-eval"] = lambda: theirs(files, FasterCOCO, COCOeval_faster)
    found = measured(ways, args.turns)
    facts = machine()
    results = {"machine": facts, "images": args.images, "turns": args.turns, "ways": found}
    publish("evaluate", results, table_of(found, facts, args.turns))


def made(images: int, classes: int = 80) -> list[Sample]:
    """7.2 objects and 96 detections an image, some near an object, most of them anywhere."""
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, classes + 1)
    popularity /= popularity.sum()
    return [one_image(rng, popularity) for _ in range(images)]


def one_image(rng: np.random.Generator, popularity: np.ndarray) -> Sample:
    n, m = int(rng.poisson(7.2)), 96
    classes = rng.choice(len(popularity), n, p=popularity)
    boxes = boxes_of(rng, n)
    truths = ImageTruths(
        boxes, classes, rng.random(n) < 0.01, boxes[:, 2:].prod(axis=1) * rng.uniform(0.4, 1, n)
    )
    found, labels, scores = (
        boxes_of(rng, m),
        rng.choice(len(popularity), m, p=popularity),
        rng.beta(0.5, 6, m),
    )
    if n:
        near = rng.random(m) < 0.4
        source = rng.integers(0, n, m)
        moved = np.abs(boxes[source] * rng.normal(1, 0.12, (m, 4)))
        found[near], labels[near] = moved[near], classes[source[near]]
        scores[near] = rng.beta(2, 2, near.sum())
    return truths, ImageDetections(found, scores, labels)


def boxes_of(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.normal(4, 1, (count, 2))).clip(2, 600)
    return np.c_[rng.uniform(0, 600, (count, 2)), sides]


def as_files(samples: list[Sample]) -> Files:
    """What the two other programs begin with, as if just read."""
    annotations: list[dict[str, Any]] = []
    results = []
    for image, (truths, found) in enumerate(samples):
        columns = (truths.boxes_ltwh, truths.classes, truths.crowd, truths.areas)
        for box, kind, crowd, area in zip(*(column.tolist() for column in columns), strict=True):
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": kind, "bbox": box}
            annotations.append({**row, "area": area, "iscrowd": int(crowd)})
        for box, kind, score in zip(
            found.boxes_ltwh.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True
        ):
            results.append({"image_id": image, "category_id": kind, "bbox": box, "score": score})
    images = [{"id": image, "width": 1200, "height": 1200} for image in range(len(samples))]
    categories = [{"id": kind, "name": str(kind)} for kind in range(80)]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}, results


def ours(ranks: list[list[Sample]]) -> Found:
    """What every rank does for its images, at the same time as the others, and then rank 0."""
    states, seconds = [], []
    for rank, samples in enumerate(ranks):
        start = time.process_time()
        accumulator = DetectionAccumulator(80, max_detections=COCO_LIMITS)
        for place, (truths, found) in enumerate(samples):
            accumulator.add(place * len(ranks) + rank, truths, found)
        states.append(accumulator.state())
        seconds.append(time.process_time() - start)
    start = time.process_time()
    coco = DetectionAccumulator.merged(80, states).summary().coco
    return Found([coco[name] for name in NAMES], max(seconds) + time.process_time() - start, 0.0)


def theirs(files: Files, dataset: Any, evaluation: Any) -> Found:
    begun = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        truths = dataset()
        truths.dataset = files[0]
        truths.createIndex()
        run = evaluation(truths, truths.loadRes(files[1]), "bbox")
        indexed = time.process_time()
        run.evaluate()
        run.accumulate()
        run.summarize()
    return Found([float(value) for value in run.stats[:12]], time.process_time() - indexed, indexed - begun)


def measured(ways: dict[str, Callable[[], Found]], turns: int) -> dict[str, dict[str, float]]:
    """Medians over ``turns`` in which each way has its turn; memory from a process of its own."""
    found: dict[str, list[Found]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            found[name].append(way())
    expected = found["pycocotools"][0].numbers
    for name, runs in found.items():
        for run in runs:
            np.testing.assert_allclose(run.numbers, expected, rtol=0, atol=1e-9, err_msg=name)
    return {
        name: {
            "seconds": statistics.median(run.seconds for run in runs),
            "index_s": statistics.median(run.index_s for run in runs),
            "memory_mib": grown_by(ways[name]),
        }
        for name, runs in found.items()
    }


def grown_by(way: Callable[[], Found]) -> float:
    """MiB that the highest resident memory rises by in a fork that does this once."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        before = resident_kib("VmRSS")
        way()
        os.write(writer, str((resident_kib("VmHWM") - before) / 1024).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        grown = float(pipe.read())
    os.waitpid(child, 0)
    return grown


def resident_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def table_of(found: dict[str, dict[str, float]], facts: dict[str, Any], turns: int) -> str:
    lines = [
        "| | AP, CPU seconds | this project is | indexing before | memory |",
        "|---|---|---|---|---|",
    ]
    own = found["this project"]["seconds"]
    for name, one in found.items():
        ratio = f"{one['seconds'] / own:.1f} times as fast" if not name.startswith("this") else ""
        index = f"{one['index_s']:.2f}" if one["index_s"] else ""
        lines.append(f"| {name} | {one['seconds']:.2f} | {ratio} | {index} | {one['memory_mib']:.0f} MiB |")
    note = (
        "5,000 images, 36,000 objects, 480,000 detections, 80 classes, one thread; the twelve numbers are "
        f"equal to 1e-9. Medians of {turns} turns. Four ranks: the slowest of them, then rank 0's part. "
    )
    return "\n".join([*lines, "", note + described(facts)])


if __name__ == "__main__":
    main()
