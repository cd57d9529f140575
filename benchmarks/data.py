"""Training images a second of one worker: this project's pipeline against the straightforward one.

    python benchmarks/data.py [--cache]

Claim: beside decoding, mosaic, random perspective, HSV and flips cost a third of what they cost when they are
written down as they are defined: decode four pictures at full size, put them on a canvas twice the input's
size, warp it once, change hue, saturation and value by tables, flip, and lay out the planes (`data_plain`).
Each way in one data worker, the straightforward one in PyTorch's own loader, by turns; CPU time of the worker
for a sample, medians. The straightforward way runs with the allocator's defaults, and again with the settings
of this project's workers. Blood cells and photographs of COCO's kind at ../shared/data; a set that is not
there is left out, and that is said. With ``--cache`` this project with a cache against itself without, and
what 4 ranks with 4 workers take of memory for it. Takes 4 minutes on an idle core.
"""

from __future__ import annotations

import contextlib
import cProfile
import json
import os
import pickle
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from common import ROOT, described, machine, parsed, parser, publish
from data_plain import BATCH, Case, PlainBatches
from torch.utils.data import DataLoader

from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.core.types import SampleKey
from horovod_yolo.data import augment
from horovod_yolo.data.augment import AugmentParams, TrainTransform
from horovod_yolo.data.cache import ImageCache, ImageReader, disk_file
from horovod_yolo.data.collate import collate
from horovod_yolo.data.colours import ColourChange
from horovod_yolo.data.loader import Loader
from horovod_yolo.data.sampler import StepSampler
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.process.allocator import keep_freed_memory

SETS = ("bccd", "coco-ccby")
SAMPLES = 12 * BATCH  # about as many in a turn
# Without the four of albumentations, one in a hundred each: the baseline has none.
DEFAULT = AugmentParams(albumentations=False)
KINDS = {
    "default": DEFAULT,
    "turned": replace(DEFAULT, degrees=10.0, shear=2.0),
    "perspective": replace(DEFAULT, degrees=10.0, shear=2.0, perspective=3e-4),
}
CASES = [(data, size, "default") for data in SETS for size in (640, 320)]
CASES += [("bccd", 640, "turned"), ("bccd", 640, "perspective")]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--turns", type=int, default=9)
    p.add_argument("--cache", action="store_true", help="with ``--cache ram`` and ``disk`` against without")
    p.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    p.add_argument("--profile", action="store_true", help="print where this project's time goes instead")
    args = parsed(p, turns=1)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    turns = args.turns
    rows = []
    for data, size, kind in CASES[1:2] if args.quick else CASES:
        if not (yaml := args.data / data / "data.yaml").is_file():
            print(f"LOUD: {yaml} is not there; {data} is left out")
            continue
        annotations = shared_annotations(load_data_yaml(yaml), "train", LocalCommunicator(), None)
        case = Case(annotations, size, KINDS[kind])
        if args.profile:
            profiled(case, data)
        elif args.cache:
            if kind == "default":
                with tempfile.TemporaryDirectory() as folder:
                    rows.append({"data": data, "size": size, **cached(case, turns, folder)})
        else:
            rows.append({"data": data, "size": size, "kind": kind, **measured(case, turns)})
            print(rows[-1], flush=True)
    facts = machine()
    if rows and args.cache:
        results = {"machine": facts, "turns": turns, "samples_a_turn": SAMPLES, "rows": rows}
        publish("data-cache", results, cache_table(rows, facts))
    elif rows:
        results = {"machine": facts, "turns": turns, "samples_a_turn": SAMPLES, "rows": rows}
        publish("data", results, table_of(rows, facts))


def measured(case: Case, turns: int) -> dict[str, Any]:
    """Milliseconds a sample: medians over turns in which each way has its own."""
    ways = {
        "plain": lambda: plain_loader(case),
        "plain_keeping_memory": lambda: plain_loader(case, keep_freed_memory),
        "ours": lambda: our_loader(case),
    }
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(worker()) for name, worker in ways.items()}
        for turn in workers.values():
            turn(0)
        found: dict[str, list[float]] = {name: [] for name in ("decode", *ways)}
        for number in range(1, turns + 1):
            found["decode"].append(in_a_fork(partial(decoding, case, number)))
            for name, turn in workers.items():
                found[name].append(turn(number))
    ms = {name: statistics.median(each) for name, each in found.items()}
    beyond = {name: ms[name] - ms["decode"] for name in ways}
    return {
        **{f"{name}_ms": value for name, value in ms.items()},
        **{f"{name}_beyond_decode_ms": value for name, value in beyond.items()},
        "ours_parts_ms": in_a_fork(partial(our_parts, case)),
        "beyond_decode_share": beyond["ours"] / beyond["plain"],
        "times_as_fast": ms["plain"] / ms["ours"],
        "decode_share_of_plain": ms["decode"] / ms["plain"],
    }


def in_a_fork(measure: Callable[[], Any]) -> Any:
    """What a child of this process finds, whose allocator is set as a data worker's."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        keep_freed_memory()
        os.write(writer, json.dumps(measure()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = json.loads(pipe.read())
    os.waitpid(child, 0)
    return found


def decoding(case: Case, turn: int) -> float:
    """Milliseconds in which OpenCV decodes as many pictures at full size as go into a sample."""
    rng = np.random.default_rng(turn)
    paths = case.paths(rng.integers(len(case.annotations), size=4 * SAMPLES))
    for path in paths[: 4 * BATCH]:
        cv2.imread(path)
    begun = time.process_time()
    for path in paths:
        cv2.imread(path)
    return (time.process_time() - begun) / SAMPLES * 1e3


@contextlib.contextmanager
def our_loader(
    case: Case, load: Callable[[int], np.ndarray] | None = None
) -> Iterator[Callable[[int], float]]:
    """What makes a turn's batches in a worker of this project, and says what a sample took it."""
    transform = TrainTransform(case.annotations, load or loading(case), case.params, 0)
    count = len(case.annotations)
    plan = StepSampler(count, BATCH, 0, 1, seed=0, shuffle=True, shape=(case.size, case.size), order=None)
    loader = Loader(transform, plan, workers=1, pin_memory=False)
    epochs = max(1, round(SAMPLES / count))

    def turn(number: int) -> float:
        def make() -> None:
            for epoch in range(epochs):
                for _ in loader.epoch(number * epochs + epoch):
                    pass

        return spent_in_worker(make) / (epochs * count) * 1e3

    try:
        yield turn
    finally:
        loader.close()


@contextlib.contextmanager
def plain_loader(
    case: Case, settings: Callable[[], object] | None = None
) -> Iterator[Callable[[int], float]]:
    """The same of the straightforward pipeline in PyTorch's own loader."""

    def settle_in(_worker: int) -> None:
        cv2.setNumThreads(0)
        if settings is not None:
            settings()

    batches = SAMPLES // BATCH
    loader = DataLoader(
        PlainBatches(case, batches),
        batch_size=None,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",
        worker_init_fn=settle_in,
    )

    def turn(_number: int) -> float:
        def make() -> None:
            for _ in loader:
                pass

        return spent_in_worker(make) / (batches * BATCH) * 1e3

    yield turn


def spent_in_worker(make: Callable[[], None]) -> float:
    """CPU seconds of all this process's children while batches are made."""
    before = spent_by_children()
    make()
    return spent_by_children() - before


def spent_by_children() -> float:
    """Of their threads, to the microsecond: ``times`` counts in hundredths of a second."""
    spent = 0
    for child in psutil.Process().children(recursive=True):
        for task in Path(f"/proc/{child.pid}/task").iterdir():
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def loading(case: Case) -> Callable[[int], np.ndarray]:
    return ImageReader(case.annotations, largest=(case.size, case.size))


def batches_by(make: TrainTransform, case: Case, epoch: int, batches: int) -> None:
    indices = np.random.default_rng(epoch).integers(len(case.annotations), size=(batches, BATCH)).tolist()
    for batch in indices:
        keys = [SampleKey(epoch, index, case.size, case.size) for index in batch]
        collate([make(key) for key in keys], case.size, case.size)


def our_parts(case: Case) -> dict[str, float]:
    """Milliseconds of a sample by what they go to, in one process."""
    spent = dict.fromkeys(("reading", "colours", "drawing", "layout"), 0.0)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            begun, colours = time.process_time(), spent["colours"]
            result = call(*args, **more)
            within = spent["colours"] - colours if name == "drawing" else 0.0
            spent[name] += time.process_time() - begun - within
            return result

        return wrapped

    ColourChange.__call__ = timed("colours", ColourChange.__call__)  # type: ignore[method-assign]
    augment.draw = timed("drawing", augment.draw)
    globals()["collate"] = timed("layout", collate)
    make = TrainTransform(case.annotations, timed("reading", loading(case)), case.params, 0)
    batches_by(make, case, 0, 1)
    spent.update(dict.fromkeys(spent, 0.0))
    begun = time.process_time()
    batches_by(make, case, 1, SAMPLES // BATCH)
    spent["random numbers, boxes, flips"] = time.process_time() - begun - sum(spent.values())
    return {name: seconds / SAMPLES * 1e3 for name, seconds in spent.items()}


def cached(case: Case, turns: int, folder: str) -> dict[str, float]:
    """Milliseconds a sample without a cache and with each, and what it takes of 4 ranks with 4 workers."""
    reader = ImageReader(case.annotations, (case.size, case.size))
    loads: dict[str, Callable[[int], np.ndarray]] = {
        "none": reader,
        "ram": ImageCache.in_memory(reader),
        "disk": ImageCache(reader, "disk", str(disk_file(reader, Path(folder)))),
    }
    for load in loads.values():  # fills it
        for i in range(len(case.annotations)):
            load(i)
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(our_loader(case, load)) for name, load in loads.items()}
        for turn in workers.values():
            turn(0)
        found: dict[str, list[float]] = {name: [] for name in loads}
        for number in range(1, turns + 1):
            for name, turn in workers.items():
                found[name].append(turn(number))
    one_copy = int(reader.ends()[-1])
    return {
        **{f"{name}_ms": statistics.median(each) for name, each in found.items()},
        "copy_mb": one_copy / 1e6,
        "copies_of_20_processes": mapped_by_all(loads["ram"], len(case.annotations)) / one_copy,
    }


def mapped_by_all(load: Callable[[int], np.ndarray], count: int) -> float:
    """Bytes of the cache that 4 ranks with 4 workers each have together, as the kernel shares them out."""
    context = get_context("fork")
    met = context.Barrier(21)

    def use(_of: int, workers: int) -> None:
        mine = pickle.loads(pickle.dumps(load))
        children = [context.Process(target=use, args=(i, 0)) for i in range(workers)]
        for child in children:
            child.start()
        sum(int(mine(i).sum()) for i in range(count))
        met.wait()
        met.wait()
        for child in children:
            child.join()

    ranks = [context.Process(target=use, args=(i, 4)) for i in range(4)]
    for rank in ranks:
        rank.start()
    met.wait()
    total = sum(mapped_of(child.pid) for child in psutil.Process().children(recursive=True))
    met.wait()
    for rank in ranks:
        rank.join()
    return total


def mapped_of(pid: int) -> int:
    counted, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = "memfd:images" in line
        elif inside and line.startswith("Pss:"):
            counted += int(line.split()[1]) * 1024
    return counted


def cache_table(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    lines = [
        "| set, input | without | `ram` | `disk` | `ram` is | images/s | one copy | 4 ranks x 4 workers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row['data']}, {row['size']} px",
            *(f"{row[f'{name}_ms']:.2f} ms" for name in ("none", "ram", "disk")),
            f"{row['none_ms'] / row['ram_ms']:.2f} times",
            f"{1e3 / row['ram_ms']:.0f}",
            f"{row['copy_mb']:.0f} MB",
            f"{row['copies_of_20_processes']:.2f} copies",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    note = "CPU time of a worker for a sample, images in the cache; its memory by proportional set size. "
    return "\n".join([*lines, "", note + described(facts)])


def profiled(case: Case, data: str) -> None:
    """Print this project's functions by their own time."""
    make = TrainTransform(case.annotations, loading(case), case.params, 0)
    keep_freed_memory()
    batches_by(make, case, 0, 1)
    profile = cProfile.Profile()
    profile.runcall(batches_by, make, case, 1, 4)
    print(f"{data}, {case.size} px, {4 * BATCH} samples")
    pstats.Stats(profile).sort_stats("tottime").print_stats(15)


def table_of(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    lines = [
        "| set, input | decode four | plain | here | beyond: plain | here | share | in all | images/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kind = "" if row["kind"] == "default" else f", {row['kind']}"
        names = ("decode", "plain", "ours", "plain_beyond_decode", "ours_beyond_decode")
        cells = [
            f"{row['data']}, {row['size']} px{kind}",
            *(f"{row[f'{name}_ms']:.2f} ms" for name in names),
            f"{row['beyond_decode_share']:.2f}",
            f"{row['times_as_fast']:.2f} times",
            f"{1e3 / row['ours_ms']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        "CPU time of a worker for a sample. Beyond: what is more than decoding four pictures at full size. "
    )
    parts = ["", "Where it goes here, in milliseconds:", "", *parts_table(rows)]
    return "\n".join([*lines, "", note + described(facts), *parts])


def parts_table(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0]["ours_parts_ms"])
    lines = ["| set, input | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        kind = "" if row["kind"] == "default" else f", {row['kind']}"
        cells = (f"{row['ours_parts_ms'][name]:.2f}" for name in names)
        lines.append(f"| {row['data']}, {row['size']} px{kind} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
