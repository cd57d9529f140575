"""Training steps on one GPU at 640 px: number formats, compiled or not, slices, and Ultralytics' trainer.

    PYTHONPATH=. python benchmarks/gpu.py [--quick] [--out gpu.json]
    PYTHONPATH=. python benchmarks/gpu.py --tiny

One process, without Horovod: random images in pinned memory, copied each step as the loader's are, and a
step with its average, whose numbers are read a step later. Each line is a few seconds after a warm-up, and
what a compiler takes. Shares of a step: the loss with its own backward pass, timed alone; what the processor
waits in CUDA calls, and what the GPU is busy, both as the profiler sees some steps. The share of the peak is
of what this GPU reaches in a product of large matrices in the same format. What data workers make in a
second, a mosaic of made-up JPEG files an image, says which lines would wait for them. Where Ultralytics'
package is importable its trainer makes the same steps (`gpu_peer.py`); claim: 1.3 times as fast in each line.

``--quick`` takes three minutes. ``--tiny`` is for a machine without a GPU, to see that all of it runs: 64 px,
two images, on the CPU, a minute.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import gpu_peer
import torch
from common import machine
from gpu_loader import images_per_s
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
from horovod_yolo.training.ema import Ema
from horovod_yolo.training.step import Step, Stepper

SIZE, CLASSES, BOXES_AN_IMAGE = 640, 80, 8
PEAK_SIZE, COMPILER = 8192, "inductor"
MODELS = ("yolov5s", "yolov5m", "yolov8s", "yolo11s", "yolo26s")
QUICK_MODELS = ("yolov5s", "yolov8s")
FORMATS = {True: torch.channels_last, False: torch.contiguous_format}
STEPS_PROFILED = 3


class Way(NamedTuple):
    """How a step is made."""

    precision: str
    channels_last: bool = True
    compiled: bool = False
    deterministic: bool = False
    slices: int = 1
    sums: str = "float"


WAYS = (
    *(Way(kind, compiled=compiled) for kind in ("bf16", "fp16") for compiled in (False, True)),
    *(Way("bf16", channels_last=False), Way("tf32"), Way("fp16", deterministic=True)),
    *(Way("fp16", deterministic=True, slices=4, sums=sums) for sums in ("float", "exact")),
)
QUICK_WAYS = (Way("bf16"),)
TINY_WAYS = (
    *(Way("fp32"), Way("bf16", channels_last=False), Way("bf16", compiled=True)),
    *(Way("fp32", deterministic=True, slices=2, sums=sums) for sums in ("float", "exact")),
)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", help=f"{' '.join(MODELS)}; with --quick {' '.join(QUICK_MODELS)}")
    p.add_argument("--quick", action="store_true", help="bf16, channels-last, alone")
    p.add_argument("--tiny", action="store_true", help="a moment on the CPU, where there is no GPU")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--workers", type=int, default=16, help="data workers of which the rate is measured")
    p.add_argument("--seconds", type=float, default=2.5, help="measured, for each line")
    p.add_argument("--out", type=Path, help="also write the JSON here")
    args = p.parse_args()
    if args.tiny:
        use_tiny_sizes(args)
    elif not torch.cuda.is_available():
        p.error("no GPU here; --tiny runs on the CPU")
    device = torch.device("cpu") if args.tiny else torch.device("cuda", 0)
    ways = TINY_WAYS if args.tiny else QUICK_WAYS if args.quick else WAYS
    models = args.models or (QUICK_MODELS if args.quick else MODELS)
    rate = images_per_s(models[0], SIZE, args.batch, args.workers, args.seconds)
    rows = [line(name, way, device, args, rate) for name, way in itertools.product(models, ways)]
    name = "no GPU" if args.tiny else torch.cuda.get_device_name()
    found = {
        "gpu": name,
        "machine": machine(),
        "batch": args.batch,
        "loader_images_per_s": rate,
        "rows": rows,
    }
    text = json.dumps(found, indent=2)
    if args.out:
        args.out.write_text(text + "\n")
    print(f"{text}\n\n{table_of(found)}")


def use_tiny_sizes(args: Any) -> None:
    """So that each line takes a second or two."""
    global SIZE, PEAK_SIZE, COMPILER
    SIZE, PEAK_SIZE, COMPILER = 64, 256, "aot_eager"  # which writes and compiles no C++
    args.batch, args.workers, args.seconds = 2, min(args.workers, 1), 0.01
    args.models = args.models or ["yolov5n", "yolo26n"]


def line(model: str, way: Way, device: torch.device, args: Any, rate: float) -> dict[str, Any]:
    """A line of the table; where it fails, why."""
    row: dict[str, Any] = {"model": model, **way._asdict()}
    try:
        with arithmetic(way.precision, deterministic=way.deterministic):
            row |= measured(model, way, device, args)
    except RuntimeError as error:  # too little memory, or no compiler: the other lines are measured yet
        row["failed"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    else:
        row["bound_by_loader"] = row["images_per_s"] > rate
        peer = gpu_peer.images_per_s(model, SIZE, args.batch, way.precision, device, args.seconds)
        row["ultralytics_images_per_s"] = peer
        row["times_ultralytics"] = peer and round(row["images_per_s"] / peer, 2)
    print(json.dumps(row), flush=True)
    return row


def measured(model: str, way: Way, device: torch.device, args: Any) -> dict[str, Any]:
    """What a line says."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    whole = choose_precision(way.precision, device)
    precision = Precision(device=device, dtype=whole.dtype, memory_format=FORMATS[way.channels_last])
    stepper = make_stepper(model, precision, args.batch, way.slices, way.sums)
    images = random_batch(args.batch, pinned=on_gpu, slices=way.slices)
    flops = flops_of_step(stepper, precision, images)
    if way.compiled:
        stepper.model.compile(backend=COMPILER)
    step = seconds_of(steps(stepper, images), args.seconds, device)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    loss = seconds_of(loss_alone(stepper, precision, images), args.seconds / 5, device)
    return {
        "images_per_s": round(args.batch / step, 1),
        "step_ms": round(step * 1e3, 2),
        "share_of_peak": round(flops / step / peak_flops(precision, args.seconds / 5), 3),
        "share_in_loss": round(loss / step, 3),
        **profiled(stepper, images, device),
        "host_waits_a_step": waits(stepper, images) if on_gpu else None,
        "max_memory_gib": round(peak / 2**30, 2),
    }


def make_stepper(
    name: str, precision: Precision, batch: int, slices: int = 1, sums: str = "float"
) -> Stepper:
    flags = {"data": "none.yaml", "cfg": name, "imgsz": SIZE, "batch_size": batch, "optimizer": "SGD"}
    config = settings_of({**flags, "slices": slices, "sums": sums})
    torch.manual_seed(0)
    model = build_model(name, CLASSES).to(precision.device, precision.of_weights)
    criterion = build_criterion(model, config)
    return build_stepper(config, model, criterion, LocalCommunicator(), precision, StopRequest())


def random_batch(images: int, *, pinned: bool, slices: int) -> Batch:
    """As the loader gives it: in pinned memory, where there is a GPU."""
    rng = torch.Generator().manual_seed(0)
    count = images * BOXES_AN_IMAGE
    targets = Targets(
        torch.arange(images).repeat_interleave(BOXES_AN_IMAGE),
        torch.randint(CLASSES, (count,), generator=rng),
        torch.rand(count, 4, generator=rng) * 0.4 + 0.1,
    )
    pixels = torch.randint(256, (images, 3, SIZE, SIZE), generator=rng, dtype=torch.uint8)
    sizes = tuple(len(part) for part in torch.arange(images).tensor_split(slices)) if slices > 1 else ()
    batch = Batch(pixels, targets, torch.arange(images), [], slices=sizes)
    return batch.pin_memory() if pinned else batch


def steps(stepper: Stepper, batch: Batch) -> Callable[[], None]:
    """A step as the training loop makes it on a GPU: averaged, and read when the next one is on its way."""
    ema, under_way = Ema(stepper.model), deque[Step]()
    for group in stepper.optimizer.param_groups:
        group["lr"] = 1e-5  # of random labels nothing is to be learnt

    def run() -> None:
        step = stepper.step(iter([batch]), [1.0])
        ema.update(stepper.model, step.made)
        under_way.append(step)
        if len(under_way) > 1:
            under_way.popleft().result()

    return run


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


def peak_flops(precision: Precision, seconds: float) -> float:
    """A second of a product of square matrices, as this device does it."""
    one = torch.randn(PEAK_SIZE, PEAK_SIZE, device=precision.device, dtype=precision.dtype)
    return 2 * PEAK_SIZE**3 / seconds_of(lambda: one @ one, seconds, precision.device)


def seconds_of(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Seconds of one call, over calls that take about so long together; first, half as long to warm up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else nullcontext
    for limit in (seconds / 2, seconds):
        wait()
        begun, calls = time.perf_counter(), 0
        while time.perf_counter() - begun < limit or calls < 3:
            work()
            calls += 1
        wait()
        took = (time.perf_counter() - begun) / calls
    return took


def profiled(stepper: Stepper, batch: Batch, device: torch.device) -> dict[str, float | None]:
    """Shares of some steps that the processor waited and that the GPU was busy; None without a profiler."""
    if device.type != "cuda":
        return {"share_in_host_waits": None, "share_gpu_busy": None}
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


def table_of(found: dict[str, Any]) -> str:
    """For docs/benchmarks.md."""
    lines = [
        "| model | numbers | channels last | compiled | deterministic | slices | sums | images/s "
        "| of the peak | loss, share of a step | waits | memory, GiB | bound by data workers "
        "| Ultralytics' trainer, images/s | times as fast |",
        "|---" * 15 + "|",
    ]
    for row in found["rows"]:
        said = [
            row["model"],
            row["precision"],
            *(_yes(row[w]) for w in ("channels_last", "compiled", "deterministic")),
            *(str(row["slices"]), row["sums"]),
        ]
        if "failed" in row:
            lines.append(f"| {' | '.join(said)} | {row['failed'].replace('|', '/')} |")
            continue
        numbers = [f"{row['images_per_s']:.0f}", f"{row['share_of_peak']:.0%}", f"{row['share_in_loss']:.0%}"]
        others = [row["host_waits_a_step"], row["max_memory_gib"], _yes(row["bound_by_loader"])]
        others += [row["ultralytics_images_per_s"], row["times_ultralytics"]]
        cells = [*said, *numbers, *("" if one is None else str(one) for one in others)]
        lines.append(f"| {' | '.join(cells)} |")
    rate = f"{found['loader_images_per_s']:.0f} images/s"
    return "\n".join([*lines, "", f"{found['gpu']}, batches of {found['batch']}; data workers make {rate}."])


def _yes(true: bool) -> str:
    return "yes" if true else "no"


if __name__ == "__main__":
    main()
