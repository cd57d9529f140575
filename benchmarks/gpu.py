"""Training steps on one GPU at 640 px in each number format, channels-last and not.

    PYTHONPATH=. python benchmarks/gpu.py [--quick] [--out gpu.json]

One process, without Horovod and without a data set: random images in pinned memory, copied each step as the
loader's are. Each line is a few seconds after a warm-up, all of them under three minutes on an H100. Shares
of a step: the loss with its own backward pass, timed alone; what the processor waits in CUDA calls, and what
the GPU is busy, both as the profiler sees some steps. The share of the peak is of what this GPU reaches in a
product of large matrices in the same format. Claim: none but the table itself.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from horovod_yolo.assembly.build import build_stepper
from horovod_yolo.assembly.device import arithmetic, choose_precision
from horovod_yolo.assembly.model import build_criterion
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Batch, Targets
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families.zoo import build_model
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.step import Stepper

SIZE, CLASSES, BOXES_AN_IMAGE = 640, 80, 8
FORMATS = {True: torch.channels_last, False: torch.contiguous_format}
# number format, channels last, deterministic kernels
VARIANTS = [(p, last, False) for p in ("fp32", "tf32", "bf16", "fp16") for last in (True, False)]
VARIANTS += [("fp32", True, True), ("fp16", True, True)]
QUICK = [("bf16", True, False)]
STEPS_PROFILED = 3


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    p.add_argument("--models", nargs="+", help="yolov5n yolo11n yolov5s; with --quick yolov5s yolov8s")
    p.add_argument("--quick", action="store_true", help="bf16, channels-last, alone")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--seconds", type=float, default=2.5, help="measured, for each line")
    p.add_argument("--out", type=Path, help="also write the JSON here")
    args = p.parse_args()
    if not torch.cuda.is_available():
        p.error("no GPU here")
    rows = []
    models = args.models or (["yolov5s", "yolov8s"] if args.quick else ["yolov5n", "yolo11n", "yolov5s"])
    for model in models:
        for precision, channels_last, deterministic in QUICK if args.quick else VARIANTS:
            with arithmetic(precision, deterministic=deterministic):
                row = measured(model, precision, channels_last, args.batch, args.seconds)
            rows.append({**row, "deterministic": deterministic})
            print(json.dumps(rows[-1]), flush=True)
    found = {"gpu": torch.cuda.get_device_name(), "machine": machine(), "batch": args.batch, "rows": rows}
    text = json.dumps(found, indent=2)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)


def measured(model: str, name: str, channels_last: bool, batch: int, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole = choose_precision(name, torch.device("cuda", 0))
    precision = Precision(device=whole.device, dtype=whole.dtype, memory_format=FORMATS[channels_last])
    stepper, images = make_stepper(model, precision, batch), random_batch(batch)
    step = seconds_of(lambda: stepper.step(iter([images]), [1.0]), seconds)
    peak = torch.cuda.max_memory_allocated()
    return {
        "model": model,
        "precision": name,
        "channels_last": channels_last,
        "images_per_s": round(batch / step, 1),
        "step_ms": round(step * 1e3, 2),
        "share_of_peak": round(flops_of_step(stepper, precision, images) / step / peak_flops(precision), 3),
        "share_in_loss": round(seconds_of(loss_alone(stepper, precision, images), 0.5) / step, 3),
        **profiled(stepper, images),
        "host_waits_a_step": waits(stepper, images),
        "max_memory_gib": round(peak / 2**30, 2),
    }


def make_stepper(name: str, precision: Precision, batch: int) -> Stepper:
    flags = {"data": "none.yaml", "cfg": name, "imgsz": SIZE, "batch_size": batch, "optimizer": "SGD"}
    config = settings_of(flags)
    torch.manual_seed(0)
    model = build_model(name, CLASSES).to(precision.device, precision.of_weights)
    criterion = build_criterion(model, config)
    return build_stepper(config, model, criterion, LocalCommunicator(), precision, StopRequest())


def random_batch(images: int) -> Batch:
    """As the loader gives it: in pinned memory."""
    rng = torch.Generator().manual_seed(0)
    count = images * BOXES_AN_IMAGE
    targets = Targets(
        torch.arange(images).repeat_interleave(BOXES_AN_IMAGE),
        torch.randint(CLASSES, (count,), generator=rng),
        torch.rand(count, 4, generator=rng) * 0.4 + 0.1,
    )
    pixels = torch.randint(256, (images, 3, SIZE, SIZE), generator=rng, dtype=torch.uint8)
    return Batch(pixels, targets, torch.arange(images), []).pin_memory()


def loss_alone(stepper: Stepper, precision: Precision, batch: Batch) -> Callable[[], object]:
    """Assignment, loss and their backward pass, for predictions that are there."""
    there = batch.to(precision.device, non_blocking=False)
    with torch.no_grad(), precision.autocast():
        raw = stepper.model(precision.images(there))
    leaves = tree_map(lambda one: one.detach().requires_grad_(), raw)
    criterion = stepper.criterion
    seen = leaves if criterion.matching_needs_predictions else None

    def run() -> None:
        matches = criterion.match(there.targets, (SIZE, SIZE), seen)
        totals = by_name(criterion, count(criterion, [matches], len(there)))
        criterion(leaves, matches, totals).total.backward()

    return run


def flops_of_step(stepper: Stepper, precision: Precision, batch: Batch) -> float:
    """Of the convolutions and products of one forward and backward pass."""
    there = precision.images(batch.to(precision.device, non_blocking=False))
    with FlopCounterMode(display=False) as counter, precision.autocast():
        raw = stepper.model(there)
        sum(one.float().sum() for one in tree_leaves(raw)).backward()
    stepper.optimizer.zero_grad()
    return float(counter.get_total_flops())


def peak_flops(precision: Precision, size: int = 8192) -> float:
    """A second of a product of square matrices, as this GPU does it."""
    one = torch.randn(size, size, device=precision.device, dtype=precision.dtype)
    return 2 * size**3 / seconds_of(lambda: one @ one, 0.5)


def seconds_of(work: Callable[[], object], seconds: float) -> float:
    """Seconds of one call, over calls that take about so long together; first, half as long to warm up."""
    for limit in (seconds / 2, seconds):
        torch.cuda.synchronize()
        begun, calls = time.perf_counter(), 0
        while time.perf_counter() - begun < limit or calls < 3:
            work()
            calls += 1
        torch.cuda.synchronize()
        took = (time.perf_counter() - begun) / calls
    return took


def profiled(stepper: Stepper, batch: Batch) -> dict[str, float | None]:
    """Shares of some steps that the processor waited and that the GPU was busy; None without a profiler."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(STEPS_PROFILED):
            stepper.step(iter([batch]), [1.0])
        torch.cuda.synchronize()
        wall_us = (time.perf_counter() - begun) * 1e6
    events = found.key_averages()
    busy = sum(event.self_device_time_total for event in events)
    waited = sum(event.self_cpu_time_total for event in events if event.key.endswith("Synchronize"))
    if not busy:
        return {"share_in_host_waits": None, "share_gpu_busy": None}
    return {"share_in_host_waits": round(waited / wall_us, 3), "share_gpu_busy": round(busy / wall_us, 3)}


def waits(stepper: Stepper, batch: Batch) -> int:
    """How often in a step the processor waits for the GPU, as PyTorch itself counts it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stepper.step(iter([batch]), [1.0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


if __name__ == "__main__":
    main()
