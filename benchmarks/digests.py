"""What digests cost: of the weights after a step, of all slices' gradients, of a slice that is done twice.

    PYTHONPATH=. python benchmarks/digests.py

Steps of one process with four slices of two images, one thread, fp32. What each does is measured inside the
step, in CPU seconds, against the rest of the same step. A minute.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from common import described, machine, parsed, parser, publish

from horovod_yolo.assembly.build import build_stepper
from horovod_yolo.assembly.device import choose_precision
from horovod_yolo.assembly.model import build_criterion
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.core.slices import Slices
from horovod_yolo.core.types import Batch
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families.zoo import build_model
from horovod_yolo.process.allocator import keep_freed_memory
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training import step
from horovod_yolo.training.double_check import DoubleCheck, Machine
from horovod_yolo.training.slice_digests import SliceDigests
from horovod_yolo.training.step import Stepper
from tests.helpers.short_runs import random_batch

CPU, ALONE = torch.device("cpu"), LocalCommunicator()
CLASSES, SLICES, IMAGES = 80, 4, 8
WAYS = ("digest", "--record", "--check-every 1")


@dataclass(frozen=True)
class Row:
    """Of a model at a size: CPU milliseconds of a step, and how much more each way takes of them."""

    model: str
    side: int
    step_ms: float
    more: dict[str, float]

    def __str__(self) -> str:
        shares = " | ".join(f"{100 * self.more[way]:+.1f} %" for way in WAYS)
        return f"| {self.model} | {self.side} | {self.step_ms:.0f} | {shares} |"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=5)
    options.add_argument("--models", nargs="+", default=["yolov5n"])
    options.add_argument("--sides", type=int, nargs="+", default=[160, 320])
    args = parsed(options, turns=2, models=["yolov5n"], sides=[64])
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [measured(name, side, args) for name in args.models for side in args.sides]
    heads = " | ".join(["digest of the weights", "`--record`", "`--check-every 1`"])
    table = [f"| model | px | CPU ms a step | {heads} |", "|---|---|---|---|---|---|", *map(str, rows)]
    how = (
        f"CPU time, medians of {args.turns} steps of one process with {SLICES} slices of {IMAGES // SLICES} "
        f"images, one thread, fp32. The check does one of the slices again. {described(machine())}"
    )
    results = {"rows": [asdict(row) for row in rows], "turns": args.turns, **machine()}
    publish("digests", results, "\n".join(table) + f"\n\n{how}")


def measured(name: str, side: int, args: argparse.Namespace) -> Row:
    batch = replace(random_batch(IMAGES, side, CLASSES), slices=(IMAGES // SLICES,) * SLICES)
    whole: list[float] = []
    parts: list[dict[str, float]] = []
    with measuring() as taken:
        stepper = stepper_of(name, side, batch)
        for _ in range(args.turns + 1):  # the first to warm up
            taken.update(dict.fromkeys(WAYS, 0.0))
            begun = time.process_time()
            stepper.step(iter([batch]), [1.0]).result()
            whole.append(time.process_time() - begun)
            parts.append(dict(taken))
    rest = [all_ - sum(some.values()) for all_, some in zip(whole, parts, strict=True)][1:]
    shares = [
        {way: part / of for way, part in some.items()} for some, of in zip(parts[1:], rest, strict=True)
    ]
    more = {way: statistics.median(share[way] for share in shares) for way in WAYS}
    row = Row(name, side, 1000 * statistics.median(rest), more)
    print(row, flush=True)
    return row


@contextmanager
def measuring() -> Iterator[dict[str, float]]:
    """Inside, the CPU seconds that each way takes are added up."""
    taken: dict[str, float] = {}

    def timed(way: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begun = time.process_time()
            try:
                return work(*arguments)
            finally:
                taken[way] += time.process_time() - begun

        return run

    places: list[tuple[str, Any, str]] = [
        (WAYS[0], step, "digest"),
        (WAYS[1], SliceDigests, "_note"),
        (WAYS[2], Stepper, "_do_twice"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for way, owner, name in places:
            patch.setattr(owner, name, timed(way, getattr(owner, name)))
        yield taken


def stepper_of(name: str, side: int, batch: Batch) -> Stepper:
    """One that does all of it."""
    flags = {"data": "none.yaml", "cfg": name, "imgsz": side, "batch_size": IMAGES, "optimizer": "SGD"}
    config = replace(settings_of({**flags, "slices": SLICES, "sums": "exact"}), record=1, check_every=1)
    torch.manual_seed(0)
    model = build_model(name, CLASSES)
    criterion, precision = build_criterion(model, config), choose_precision("fp32", CPU)
    stepper = build_stepper(config, model, criterion, ALONE, precision, StopRequest())
    stepper.digests, stepper.check = True, check_of(batch)
    return stepper


def check_of(batch: Batch) -> DoubleCheck:
    """The second slice, done again by its own rank."""
    first, last = [*pairwise(Slices(SLICES, 0, SLICES).places(len(batch)))][1]
    return DoubleCheck(
        comm=ALONE,
        machines=[Machine("here", "this")],
        step=1,
        at=(0, 1),
        scale=1.0,
        ranks=(0,),
        batch=lambda: replace(batch._part(first, last), slices=()),
    )


if __name__ == "__main__":
    main()
