"""A step: what the loop adds to it, what it waits for, and how near it comes to the machine's best.

    PYTHONPATH=. python benchmarks/step.py [--one]
    PYTHONPATH=. python benchmarks/step.py --syncs
    PYTHONPATH=. python benchmarks/step.py --floor [--one]

Without a flag: optimizer steps a second of the training loop, its logs and averages included, against a bare
loop of the same model and loss, by turns in one process; and what assignment and loss take of a step. Claims:
0.98 of the bare loop or more; loss and assignment 8 % or less. The batch is made up and in memory. Two CPU
cores take about fifteen minutes. Seconds are CPU seconds of the process: other work may share the machine.

``--syncs`` counts, on the tests' pretend device, how often a step waits for the device, and copies to it.
Claims: once; the images and one tensor. Half a minute.

``--floor`` compares steps with YOLOv5's recipe as a plain loop, measure by measure, each in a process of its
own (`step_one.py`), by turns; and their FLOP/s with those of a large convolution. Claim: 1.5 times. About ten
minutes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import described, machine, parsed, parser, publish
from many_images import make_images
from torch import Tensor
from torch.utils._pytree import tree_map

from horovod_yolo.assembly.build import build_stepper, build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.device import choose_precision
from horovod_yolo.assembly.model import build_criterion
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.types import Batch
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families.zoo import build_model
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.process.allocator import keep_freed_memory
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.telemetry.csv_log import EpochLog, StepLog
from horovod_yolo.telemetry.progress import ProgressDisplay
from horovod_yolo.training.ema import Ema
from horovod_yolo.training.events import Callback, StepReport
from horovod_yolo.training.loop import Trainer
from tests.helpers.pretend_device import NAME, pretend_device
from tests.helpers.short_runs import random_batch

MODELS = ("yolov5n", "yolov5s", "yolov8n", "yolo11n")
IMAGES = {320: 8, 640: 4}  # of a batch
CLASSES, BOXES_AN_IMAGE = 80, 8
STEPS_A_TURN, TURNS = 4, 8
FLOOR_STEPS, FLOOR_TURNS = 3, 3
ALONE = LocalCommunicator()
# What a process of `step_one.py` does, and what each adds to the one before.
WAYS = {
    "yolov5": "YOLOv5's recipe as a plain loop",
    "nchw": "our step, NCHW",
    "last": "channels-last inputs",
    "point": "1x1 convolutions by oneDNN",
    "kept": "freed memory kept: the default",
    "bf16": "`--precision bf16`",
}
BASELINE, DEFAULT = "yolov5", "kept"
STEP_ONE = (sys.executable, str(Path(__file__).with_name("step_one.py")))


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--syncs", action="store_true", help="waits for a device, and copies to it")
    p.add_argument("--floor", action="store_true", help="against YOLOv5's recipe and a large convolution")
    p.add_argument("--one", action="store_true", help="yolov5n at 320 px alone")
    given = parsed(p, one=True)
    torch.set_num_threads(1)
    cases = [(name, side) for side in IMAGES for name in MODELS]
    cases = [("yolov5n", 320)] if given.one else cases
    if given.syncs:
        tell_syncs(("yolov5n",) if given.one else ("yolov5n", "yolo11n", "yolo26n"))
    elif given.floor:
        tell_floor(cases)
    else:
        tell_loop(cases)


# ---------------------------------------------------------------- the loop


def tell_loop(cases: list[tuple[str, int]]) -> None:
    """Measure and publish the loop against the bare one."""
    keep_freed_memory()
    rows = []
    for name, side in cases:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(
                {"model": name, "side": side, "images": IMAGES[side], **measured(name, side, Path(folder))}
            )
        print(rows[-1], flush=True)
    facts = machine()
    lines = [
        "| model | px | images | loop, steps/s | bare loop | of it | least to most | loss and assignment |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        least, most = min(row["ratios"]), max(row["ratios"])
        lines.append(
            f"| {row['model']} | {row['side']} | {row['images']} | {row['loop']:.2f} | {row['bare']:.2f} | "
            f"{row['ratio']:.3f} | {least:.3f} to {most:.3f} | {row['loss']:.1%} |"
        )
    note = f"Medians of {TURNS} turns of {STEPS_A_TURN} steps each way, one thread, fp32, CPU seconds."
    publish("step", {"machine": facts, "rows": rows}, "\n".join(lines) + f"\n\n{note} {described(facts)}\n")


def measured(name: str, side: int, folder: Path) -> dict[str, Any]:
    """Steps a second both ways, by turns, and the share of assignment and loss."""
    trainer, watch, batch = prepared_trainer(name, side, folder)
    step = bare_loop(trainer.config, name, batch)
    step()
    loop_s: list[float] = []
    bare_s: list[float] = []
    for turn in range(TURNS + 1):
        watch.moments.clear()
        trainer.train_epoch()
        took = [b - a for a, b in zip(watch.moments, watch.moments[1:], strict=False)]
        bare = [seconds_of(step) for _ in range(STEPS_A_TURN)]
        if turn:  # the first is to warm up
            loop_s.append(statistics.median(took))
            bare_s.append(statistics.median(bare))
    loss_s = statistics.median(seconds_of(loss_alone(trainer, batch)) for _ in range(5))
    trainer.close()
    loop, bare_step = statistics.median(loop_s), statistics.median(bare_s)
    ratios = [b / a for a, b in zip(loop_s, bare_s, strict=True)]
    return {
        "loop": 1 / loop,
        "bare": 1 / bare_step,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "loss": loss_s / bare_step,
    }


class Watch(Callback):
    """Notes when a step is over."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step(self, report: StepReport) -> None:
        """Now."""
        self.moments.append(time.process_time())


class PreparedLoader:
    """A loader whose batches are there."""

    wait_s, lost = 0.0, {}  # type: ignore[var-annotated]

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def epoch(self, epoch: int, start_batch: int = 0, until: int = 0) -> Iterator[Batch]:
        """The same one, as often as it is asked for."""
        while True:
            yield self._batch

    def close(self) -> None:
        """Nothing to end."""


def prepared_trainer(name: str, side: int, folder: Path) -> tuple[Trainer, Watch, Batch]:
    """The real thing with its logs, but for the data."""
    images = IMAGES[side]
    data = make_images(folder / "data", images * (STEPS_A_TURN + 1))
    config = config_of(name, side, images, data=str(data), epochs=TURNS + 2, noval=True, workers=0)
    parts = build_data(load_data_yaml(data), config, ALONE)
    watch = Watch()
    logs: list[Callback] = [StepLog(folder), EpochLog(folder), ProgressDisplay(alone=True), watch]
    trainer = build_trainer(config, parts, ALONE, logs, None)
    batch = random_batch(images, side, CLASSES, BOXES_AN_IMAGE)
    trainer.loader.close()
    trainer.loader = PreparedLoader(batch)  # type: ignore[assignment]
    return trainer, started(trainer, watch), batch


def started(trainer: Trainer, watch: Watch) -> Watch:
    from horovod_yolo.training.events import RunStart

    start = RunStart(0, 0, 0, trainer.schedule, trainer.stepper.criterion.terms)
    for callback in trainer.callbacks:
        callback.on_start(start)
    return watch


def config_of(name: str, side: int, images: int, **flags: Any) -> TrainConfig:
    """One batch a step, by SGD."""
    given = {"data": "none.yaml", "cfg": name, "imgsz": side, "batch_size": images, "optimizer": "SGD"}
    config = settings_of({**given, "device": "cpu", "noautoanchor": True, **flags})
    return replace(config, hyp=replace(config.hyp, nbs=float(images)))


def bare_loop(config: TrainConfig, name: str, batch: Batch) -> Callable[[], None]:
    """A step of the same model with the same loss and PyTorch's optimizer, and nothing else."""
    torch.manual_seed(0)
    model = build_model(name, CLASSES).train()
    criterion = build_criterion(model, config)
    precision = choose_precision("fp32", torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    size = (config.imgsz, config.imgsz)

    def step() -> None:
        predictions = model(precision.images(batch))
        matches = criterion.match(batch.targets, size, predictions)
        totals = by_name(criterion, count(criterion, [matches], len(batch)))
        criterion(predictions, matches, totals).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def loss_alone(trainer: Trainer, batch: Batch) -> Callable[[], None]:
    """Assignment, loss and their way back, for predictions that are there."""
    model, criterion = trainer.stepper.model, trainer.stepper.criterion
    with torch.no_grad():
        raw = model(trainer.stepper.precision.images(batch))

    def fresh(one: Tensor) -> Tensor:
        return one.detach().requires_grad_()

    leaves = tree_map(fresh, raw)
    size = (trainer.config.imgsz, trainer.config.imgsz)

    def run() -> None:
        matches = criterion.match(batch.targets, size, leaves)
        totals = by_name(criterion, count(criterion, [matches], len(batch)))
        criterion(leaves, matches, totals).total.backward()

    return run


def seconds_of(work: Callable[[], object]) -> float:
    """Of one call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


# ---------------------------------------------------------------- waits and copies


def tell_syncs(models: Sequence[str]) -> None:
    """Count and publish."""
    kinds = [("SGD", "fp32"), ("SGD", "fp16"), ("AdamW", "fp16"), ("MuSGD", "fp32")]
    cases = [(name, *kind) for name in models for kind in kinds]
    rows = [{"model": m, "optimizer": o, "precision": p, **syncs_of(m, o, p)} for m, o, p in cases]
    lines = [
        "| model | optimizer | numbers | waits a step | before the step is made | copies to the device |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['optimizer']} | {row['precision']} | {row['waits']} | {row['early']} | "
            f"{row['copies']} |"
        )
    facts = machine()
    note = "The third step of a run, two images of 64 px. A copy is the images, or all of the targets."
    publish(
        "step-syncs", {"machine": facts, "rows": rows}, "\n".join(lines) + f"\n\n{note} {described(facts)}\n"
    )


def syncs_of(name: str, optimizer: str, precision: str) -> dict[str, int]:
    """Waits and copies of a step and of the average that follows it."""
    with pretend_device() as log:
        config = replace(config_of(name, 64, 2), optimizer=optimizer)  # type: ignore[arg-type]
        torch.manual_seed(0)
        kind = choose_precision(precision, torch.device(NAME, 0))
        model = build_model(name, CLASSES).to(kind.device, kind.of_weights)
        criterion = build_criterion(model, config)
        stepper, ema = build_stepper(config, model, criterion, ALONE, kind, StopRequest()), Ema(model)
        for seed in range(3):
            log.clear()
            step = stepper.step(iter([random_batch(2, 64, CLASSES, seed=seed)]), [1.0])
            ema.update(model, step.made)
            early = len(log.waits)
            step.result()
        where = Counter(wait.split(" < ")[0] for wait in log.waits)
        print(name, optimizer, precision, dict(where), flush=True)
        return {"waits": len(log.waits), "early": early, "copies": len(log.copies_to_device)}


# ---------------------------------------------------------------- the floor


def tell_floor(cases: list[tuple[str, int]]) -> None:
    """Measure and publish steps against YOLOv5's recipe, and FLOP/s against a large convolution."""
    best = float(subprocess.check_output([*STEP_ONE, "convolution"], text=True))
    rows = []
    for name, side in [case for case in cases if case[0] in ("yolov5n", "yolov5s", "yolov8n")]:
        seconds, flops = floor_of(name, side)
        row = {"model": name, "side": side, "images": IMAGES[side], "seconds": seconds}
        row["gain"] = {way: seconds[BASELINE] / took for way, took in seconds.items()}
        row["share"] = flops / seconds[DEFAULT] / best
        rows.append(row)
        print(row, flush=True)
    lines = [
        "| model | px | "
        + " | ".join(WAYS.values())
        + " | evaluation, fused batch norm | of the best FLOP/s |",
        "|---" * (len(WAYS) + 4) + "|",
    ]
    for row in rows:
        gains = " | ".join(f"{row['gain'][way]:.2f}" for way in WAYS)
        fused = row["seconds"]["evaluated"] / row["seconds"]["fused"]
        lines.append(f"| {row['model']} | {row['side']} | {gains} | {fused:.2f} | {row['share']:.0%} |")
    facts = machine()
    note = (
        f"Times as fast as YOLOv5's recipe, each column with what the one before has; evaluation against the "
        "forward pass with batch norm. One thread, CPU seconds. "
        f"A convolution reaches {best / 1e9:.0f} GFLOP/s."
    )
    found = {"machine": facts, "best_flops": best, "rows": rows}
    publish("step-floor", found, "\n".join(lines) + f"\n\n{note} {described(facts)}\n")


def floor_of(name: str, side: int) -> tuple[dict[str, float], float]:
    """Seconds of a step each way, medians of turns, and the FLOP of one."""
    ways = [*WAYS, "evaluated", "fused"]
    running = {}
    for way in ways:
        words = [*STEP_ONE, way, name, str(side), str(IMAGES[side])]
        running[way] = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        flops = float(line_of(running[BASELINE]))
        for way in ways[1:]:
            line_of(running[way])
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(FLOOR_TURNS):
            for way in ways:
                pipe = running[way].stdin
                assert pipe is not None
                print(FLOOR_STEPS, file=pipe, flush=True)
                took[way].append(float(line_of(running[way])))
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    return {way: statistics.median(values) for way, values in took.items()}, flops


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that it says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a process of step_one.py has ended")
    return line


if __name__ == "__main__":
    main()
