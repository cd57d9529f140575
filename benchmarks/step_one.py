"""One way of making steps, for `step.py --floor`: says how many FLOP a step has, then waits for turns.

    PYTHONPATH=. python benchmarks/step_one.py WAY MODEL SIDE IMAGES
    PYTHONPATH=. python benchmarks/step_one.py convolution

A line on its input asks for so many steps; it answers with the median of their seconds.
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from horovod_yolo.assembly.build import build_stepper
from horovod_yolo.assembly.device import choose_precision
from horovod_yolo.assembly.model import build_criterion
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.types import Batch
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families.zoo import build_model
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.models.batch_norm import BatchNorm2d
from horovod_yolo.models.convolution import Conv2d
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.fusing import fused
from horovod_yolo.process.allocator import keep_freed_memory
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.ema import Ema
from tests.helpers.short_runs import random_batch

CLASSES = 80
CPU = torch.device("cpu")


def main() -> None:
    torch.set_num_threads(1)
    way, *of = sys.argv[1:]
    if way == "convolution":
        print(best_flops())
        return
    name, side, images = of[0], int(of[1]), int(of[2])
    if way in ("kept", "bf16", "evaluated", "fused"):
        keep_freed_memory()
    config = settings_of(
        {"data": "none.yaml", "cfg": name, "imgsz": side, "batch_size": images, "optimizer": "SGD"}
    )
    torch.manual_seed(0)
    model, batch = build_model(name, CLASSES), random_batch(images, side, CLASSES)
    step = {"yolov5": plain, "evaluated": evaluated, "fused": evaluated}.get(way, ours)(
        config, model, batch, way
    )
    with FlopCounterMode(display=False) as flops:
        step()
    print(flops.get_total_flops(), flush=True)
    for line in sys.stdin:
        print(statistics.median(seconds_of(step) for _ in range(int(line))), flush=True)


def seconds_of(work: Callable[[], object]) -> float:
    """Of one call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def plain(config: TrainConfig, model: Detector, batch: Batch, way: str) -> Callable[[], None]:
    """YOLOv5's recipe: PyTorch's batch norm, NCHW, SGD in three groups, clipping, an average by tensor."""
    with_torchs_own(model, Conv2d, BatchNorm2d)
    criterion = build_criterion(model, config)
    norms = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    known = {id(p) for p in norms + biases}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": biases}, {"params": rest, "weight_decay": 5e-4}, {"params": norms}]
    optimizer = torch.optim.SGD(groups, lr=1e-4, momentum=0.937, nesterov=True)
    average, updates = copy.deepcopy(model).eval().requires_grad_(False), 0

    def step() -> None:
        nonlocal updates
        model.train()
        predictions = model(batch.images.float() / 255)
        matches = criterion.match(batch.targets, (config.imgsz, config.imgsz), predictions)
        totals = by_name(criterion, count(criterion, [matches], len(batch)))
        criterion(predictions, matches, totals).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        updates += 1
        share = 0.9999 * (1 - math.exp(-updates / 2000))
        current = model.state_dict()
        with torch.no_grad():
            for key, value in average.state_dict().items():
                if value.is_floating_point():
                    value *= share
                    value += (1 - share) * current[key]

    return step


def with_torchs_own(model: Detector, *kinds: type[nn.Module]) -> None:
    """PyTorch's layers in place of ours, which are made of them."""
    for module in model.modules():
        if type(module) in kinds:
            module.__class__ = type(module).__bases__[0]


def ours(config: TrainConfig, model: Detector, batch: Batch, way: str) -> Callable[[], None]:
    """The stepper's, with the average."""
    if way in ("nchw", "last"):
        with_torchs_own(model, Conv2d)
    precision = choose_precision("bf16" if way == "bf16" else "fp32", CPU)
    if way == "nchw":
        precision = replace(precision, memory_format=torch.contiguous_format)
    criterion, ema = build_criterion(model, config), Ema(model)
    stepper = build_stepper(config, model, criterion, LocalCommunicator(), precision, StopRequest())
    for group in stepper.optimizer.param_groups:
        group["lr"] = 1e-4

    def step() -> None:
        made = stepper.step(iter([batch]), [1.0])
        ema.update(model, made.made)
        made.result()

    return step


def evaluated(config: TrainConfig, model: Detector, batch: Batch, way: str) -> Callable[[], None]:
    """A forward pass as validation makes it."""
    precision = choose_precision("fp32", CPU)
    model = fused(model) if way == "fused" else model.eval()

    @torch.inference_mode()
    def step() -> None:
        model(precision.images(batch))

    return step


def best_flops() -> float:
    """FLOP/s of the best of some large convolutions, channels last, forward."""
    keep_freed_memory()
    found = []
    for channels, side in ((128, 80), (256, 40), (512, 40)):
        kernel = torch.randn(channels, channels, 3, 3)
        images = torch.randn(4, channels, side, side).contiguous(memory_format=torch.channels_last)
        flop = 2 * images.numel() * channels * 9

        def convolved(kernel: Tensor = kernel, images: Tensor = images) -> None:
            with torch.no_grad():
                nn.functional.conv2d(images, kernel, padding=1)

        convolved()
        found.append(flop / min(seconds_of(convolved) for _ in range(5)))
    return max(found)


if __name__ == "__main__":
    main()
