"""One of the ranks whose speed `engines.py` compares: the same model, batches and steps, over one engine.

    torchrun --standalone --nproc-per-node 2 benchmarks/engines_rank.py ours|ddp STEPS

Rank 0 prints the images a second of all ranks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from horovod_yolo.assembly.build import build_stepper
from horovod_yolo.assembly.model import build_criterion
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Batch, Targets
from horovod_yolo.distributed.backends import connect
from horovod_yolo.families import zoo
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.optimizers import make_optimizer

MODEL, CLASSES, SIDE, IMAGES, BOXES = "yolov5n", 10, 160, 4, 8
WARM_UP = 3
CPU = torch.device("cpu")
CONFIG = settings_of({"data": "none.yaml", "cfg": MODEL, "imgsz": SIDE, "compression": "none"})


def batch_of(rank: int) -> Batch:
    """Noise with boxes on it, of a rank's own."""
    rng = torch.Generator().manual_seed(rank)
    images = torch.randint(256, (IMAGES, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    boxes = torch.rand(BOXES * IMAGES, 4, generator=rng) * torch.tensor([0.8, 0.8, 0.3, 0.3]) + 0.1
    classes = torch.randint(CLASSES, (BOXES * IMAGES,), generator=rng)
    targets = Targets(torch.arange(IMAGES).repeat_interleave(BOXES), classes, boxes)
    return Batch(images, targets, torch.arange(IMAGES), ())


def ours() -> tuple[int, int, Callable[[], object], Callable[[], None]]:
    """Rank, ranks, a step of this project's, and how to leave."""
    comm = connect()
    torch.manual_seed(0)
    model = zoo.build_model(MODEL, CLASSES)
    criterion = build_criterion(model, CONFIG)
    precision = Precision(device=CPU, dtype=torch.float32)
    stepper = build_stepper(CONFIG, model, criterion, comm, precision, StopRequest())
    batch = batch_of(comm.rank)
    return comm.rank, comm.size, lambda: stepper.step(iter([batch]), [1.0]), comm.close


def ddp() -> tuple[int, int, Callable[[], object], Callable[[], None]]:
    """The same with PyTorch's wrapper: without sums of normalisers and losses over ranks."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = zoo.build_model(MODEL, CLASSES).train()
    criterion = build_criterion(model, CONFIG)
    optimizer = make_optimizer("SGD", model, lr=0.01, momentum=0.9, decay=0.0005)
    wrapped = DistributedDataParallel(model)
    batch = batch_of(dist.get_rank())

    def step() -> None:
        matches = criterion.match(batch.targets, (SIDE, SIDE), None)
        totals = by_name(criterion, count(criterion, [matches], IMAGES))
        criterion(wrapped(batch.images.float() / 255), matches, totals).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return dist.get_rank(), dist.get_world_size(), step, dist.destroy_process_group


def main() -> None:
    how, steps = sys.argv[1], int(sys.argv[2])
    rank, size, step, leave = {"ours": ours, "ddp": ddp}[how]()
    for _ in range(WARM_UP):
        step()
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = time.perf_counter() - begun
    if rank == 0:
        print(f"images/s {size * IMAGES * steps / seconds:.2f}", flush=True)
    leave()


if __name__ == "__main__":
    main()
