"""Suppression of a batch's boxes: this project's against OpenCV's, torchvision's and a plain loop.

    python benchmarks/nms.py

Claim: never slower than the faster of cv2.dnn.NMSBoxesBatched and torchvision's batched_nms, with exactly the
detections of a plain loop in double precision, which is checked for every image. From boxes and scores on the
CPU, 32 images of them, to at most 300 detections an image, several classes a box, IoU 0.6, one thread. They
are made at random, much like a trained network's: 7 objects an image, each seen by some dozens of places, and
low scores elsewhere. For the two libraries candidates are found by numpy, image by image, as fast as it can.
torchvision's column needs a torchvision that fits the torch beside it (extra [torchvision]). Seconds are CPU
seconds of the process: other work may share the machine. Takes two minutes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from common import described, machine, parsed, parser, publish
from numpy.typing import NDArray

from horovod_yolo.core.types import Decoded
from horovod_yolo.models.candidates import candidates_of
from horovod_yolo.models.suppression import MAX_CANDIDATES, Thresholds, non_max_suppression

try:
    from torchvision.ops import batched_nms
except (ImportError, RuntimeError):
    batched_nms = None

IOU, MOST = 0.6, 300
Keep = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], Any]  # boxes, scores, classes -> best first


class Case(NamedTuple):
    """What is suppressed."""

    name: str
    images: int
    places: int
    classes: int
    confidence: float
    untrained: bool = False


CASES = (
    Case("v5", 32, 25_200, 80, 0.25),
    Case("v5", 32, 25_200, 80, 0.001),
    Case("v8", 32, 8_400, 80, 0.25),
    Case("v8", 32, 8_400, 80, 0.001),
    Case("v5, one class", 32, 25_200, 1, 0.25),
    Case("v5, one class", 32, 25_200, 1, 0.001),
    Case("v5, untrained", 2, 25_200, 80, 0.001, untrained=True),
)


class Boxes(NamedTuple):
    """What is found in an image, best first."""

    boxes_xyxy: NDArray[Any]
    scores: NDArray[Any]
    classes: NDArray[Any]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--turns", type=int, default=15)
    args = parsed(p, turns=1)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rows = [measured(case, args.turns) for case in (CASES[4:6] if args.quick else CASES)]
    facts = machine()
    results = {"machine": facts, "turns": args.turns, "torchvision": batched_nms is not None, "cases": rows}
    publish("nms", results, table_of(rows, facts, args.turns))


def made(case: Case) -> Decoded:
    """What a network may give."""
    rng = np.random.default_rng(0)
    boxes, scores = [], []
    for _ in range(case.images):
        centres, sides = rng.uniform(0, 640, (case.places, 2)), np.exp(rng.normal(3.5, 0.8, (case.places, 2)))
        if case.untrained:
            likely = rng.random((case.places, case.classes))
        else:
            likely = (
                np.exp(rng.normal(-10.5, 1.5, (case.places, 1)))
                * rng.random((case.places, case.classes)) ** 4
            )
        for _ in range(rng.poisson(7.2)):
            near = rng.integers(0, case.places, rng.integers(10, 60))
            size = np.exp(rng.normal(4.3, 0.7, 2))
            centres[near] = rng.uniform(0, 640, 2) + rng.normal(0, 0.07, (len(near), 2)) * size
            sides[near] = size * np.exp(rng.normal(0, 0.1, (len(near), 2)))
            likely[near, rng.integers(0, case.classes)] = rng.beta(1.2, 2, len(near))
        boxes.append(np.concatenate((centres - sides / 2, centres + sides / 2), axis=1))
        scores.append(likely.astype(np.float32))
    return Decoded(torch.from_numpy(np.stack(boxes).astype(np.float32)), torch.from_numpy(np.stack(scores)))


def of_this_project(decoded: Decoded, confidence: float) -> list[Boxes]:
    found = non_max_suppression(decoded, Thresholds(confidence=confidence, iou=IOU, most=MOST))
    return [Boxes(d.boxes_xyxy.numpy(), d.scores.numpy(), d.classes.numpy()) for d in found]


def by(keep: Keep) -> Callable[[Decoded, float], list[Boxes]]:
    """What a library's function keeps of each image's candidates."""

    def suppress(decoded: Decoded, confidence: float) -> list[Boxes]:
        found = []
        for image in candidates(decoded, confidence):
            kept = np.asarray(keep(*image), np.int64)[:MOST]
            found.append(Boxes(*(column[kept] for column in image)))
        return found

    return suppress


def candidates(decoded: Decoded, confidence: float) -> list[Boxes]:
    found = []
    for boxes, scores in zip(decoded.boxes_xyxy.numpy(), decoded.scores.numpy(), strict=True):
        flat = scores.reshape(-1)
        at = np.flatnonzero(flat > confidence)
        if len(at) > MAX_CANDIDATES:
            at = at[np.sort(np.argpartition(-flat[at], MAX_CANDIDATES)[:MAX_CANDIDATES])]
        rows, classes = np.divmod(at, scores.shape[1])
        found.append(Boxes(boxes[rows], flat[at], classes))
    return found


def by_opencv(boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any]) -> Any:
    ltwh = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1, dtype=np.float64)
    return cv2.dnn.NMSBoxesBatched(ltwh, scores, classes, 0.0, IOU)


def by_torchvision(boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any]) -> Any:
    return batched_nms(*map(torch.from_numpy, (boxes, scores, classes)), IOU)


def by_a_loop(boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any]) -> list[int]:
    """The plain one: each candidate, best first, against all that are kept; ended by the last that counts."""
    boxes = boxes.astype(np.float64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        some = np.array([k for k in kept if classes[k] == classes[i]], np.int64)
        sides = np.minimum(boxes[i, 2:], boxes[some, 2:]) - np.maximum(boxes[i, :2], boxes[some, :2])
        inter = sides.clip(min=0).prod(axis=1)
        if not (inter / (areas[i] + areas[some] - inter) > IOU).any():
            kept.append(int(i))
        if len(kept) == MOST:
            break
    return kept


def measured(case: Case, turns: int) -> dict[str, Any]:
    """Medians of seconds, and of the ratios turn by turn."""
    decoded = made(case)
    ways: dict[str, Callable[[Decoded, float], Any]] = {
        "this project": of_this_project,
        "OpenCV": by(by_opencv),
        **({"torchvision": by(by_torchvision)} if batched_nms else {}),
        "finding candidates": candidates,
        "finding and sorting": lambda decoded, confidence: candidates_of(
            decoded, confidence, multi_label=True, most=MAX_CANDIDATES
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(min(turns, 3) if case.untrained else turns):
        for name, way in ways.items():
            begun = time.process_time()
            way(decoded, case.confidence)
            seconds[name].append(time.process_time() - begun)
    begun = time.process_time()
    expected = by(by_a_loop)(decoded, case.confidence)
    looped = time.process_time() - begun
    for ours, theirs in zip(of_this_project(decoded, case.confidence), expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    own = seconds["this project"]
    return {
        **case._asdict(),
        "candidates": sum(len(image.scores) for image in candidates(decoded, case.confidence)) / case.images,
        "found": sum(len(image.scores) for image in expected) / case.images,
        "seconds": {**{name: statistics.median(some) for name, some in seconds.items()}, "loop": looped},
        "times as fast as": {
            name: statistics.median(theirs / ours for theirs, ours in zip(some, own, strict=True))
            for name, some in seconds.items()
        },
    }


def table_of(rows: list[dict[str, Any]], facts: dict[str, Any], turns: int) -> str:
    others = [name for name in ("OpenCV", "torchvision") if name in rows[0]["seconds"]]
    lines = [
        "| outputs | confidence | candidates, found an image | finding candidates "
        "| this project (finding and sorting) | "
        + " | ".join(f"{name}, ratio" for name in others)
        + " | plain loop |",
        "|---" * (6 + len(others)) + "|",
    ]
    for row in rows:
        ms = {name: f"{1000 * value / row['images']:.2f}" for name, value in row["seconds"].items()}
        peers = [f"{ms[name]}, {row['times as fast as'][name]:.2f}" for name in others]
        cells = [
            f"{row['name']}: {row['images']} x {row['places']:,} x {row['classes']}",
            f"{row['confidence']:g}",
            f"{row['candidates']:.0f}, {row['found']:.0f}",
            ms["finding candidates"],
            f"{ms['this project']} ({ms['finding and sorting']})",
            *(*peers, ms["loop"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "Milliseconds an image, whole: finding the candidates is part of each; a ratio says how many times "
        f"as fast this project is. Medians of {turns} turns, one thread; detections are the plain loop's. "
    )
    return "\n".join([*lines, "", note + described(facts)])


if __name__ == "__main__":
    main()
