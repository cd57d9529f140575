"""One of the ranks whose speed `engines.py`, `scaling.py` and `sync_bn.py` compare over each engine.

    torchrun --nproc-per-node 2 benchmarks/engines_rank.py ours|ddp|alone|exchange|sync-bn STEPS ...

``alone`` knows of no other process, whoever started it. Rank 0 (alone: each) prints the images a second of
all ranks, and then a line of JSON with what each of its threads has used of the processor meanwhile.
``exchange`` only sums what the gradients would be.
``sync-bn`` does the steps without and with synchronised batch norm by turns, and prints both rates of each.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from horovod_yolo.assembly.build import build_stepper
from horovod_yolo.assembly.model import build_criterion
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.assembly.slicing import with_slices
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Batch, Targets
from horovod_yolo.distributed.backends import connect
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families import zoo
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.optimizers import make_optimizer

CLASSES, BOXES = 10, 8
WARM_UP = 3
CPU = torch.device("cpu")
Step = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """What a rank does in a step."""

    cfg: str
    side: int  # of an image, pixels
    images: int  # of a rank
    fusion_mb: float = TrainConfig.fusion_mb  # of a group of gradients

    def config(self, ranks: int, sync_bn: bool = False) -> TrainConfig:
        """Of a run."""
        names = {
            "data": "none.yaml",
            "cfg": self.cfg,
            "imgsz": self.side,
            "compression": "none",
            "optimizer": "SGD",
            "fusion_mb": self.fusion_mb,
        }
        return settings_of({**names, "batch_size": ranks * self.images, "sync_bn": sync_bn})

    def batch_of(self, rank: int) -> Batch:
        """Noise with boxes on it, of a rank's own."""
        rng = torch.Generator().manual_seed(rank)
        images = torch.randint(256, (self.images, 3, self.side, self.side), generator=rng, dtype=torch.uint8)
        boxes = torch.rand(BOXES * self.images, 4, generator=rng) * torch.tensor([0.8, 0.8, 0.3, 0.3]) + 0.1
        classes = torch.randint(CLASSES, (BOXES * self.images,), generator=rng)
        targets = Targets(torch.arange(self.images).repeat_interleave(BOXES), classes, boxes)
        return Batch(images, targets, torch.arange(self.images), ())


def ours(work: Work, comm: Communicator, sync_bn: bool = False) -> Step:
    """A step of this project's. *Collective.*"""
    config = with_slices(work.config(comm.size, sync_bn), comm.size, CPU, comm)
    torch.manual_seed(0)
    model = zoo.build_model(work.cfg, CLASSES)
    criterion = build_criterion(model, config)
    precision = Precision(device=CPU, dtype=torch.float32)
    stepper = build_stepper(config, model, criterion, comm, precision, StopRequest())
    batch = work.batch_of(comm.rank)
    return lambda: stepper.step(iter([batch]), [1.0]).result()


def exchange(work: Work, comm: Communicator) -> Step:
    """Nothing but a sum of as many numbers as there are gradients. *Collective.*"""
    numbers = torch.ones(sum(p.numel() for p in zoo.build_model(work.cfg, CLASSES).parameters()))
    return lambda: comm.allreduce_sum(numbers, "gradients").wait()


def ddp(work: Work) -> Step:
    """The same with PyTorch's wrapper: without sums of normalisers and losses over ranks."""
    config = work.config(dist.get_world_size())
    torch.manual_seed(0)
    model = zoo.build_model(work.cfg, CLASSES).train()
    criterion = build_criterion(model, config)
    optimizer = make_optimizer("SGD", model, lr=0.01, momentum=0.9, decay=0.0005)
    wrapped = DistributedDataParallel(model)
    batch = work.batch_of(dist.get_rank())

    def step() -> None:
        matches = criterion.match(batch.targets, (work.side, work.side), None)
        totals = by_name(criterion, count(criterion, [matches], work.images))
        criterion(wrapped(batch.images.float() / 255), matches, totals).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def threads() -> dict[str, float]:
    """CPU seconds of each thread of this process, as the scheduler counts them.

    ``stat`` samples them by ticks, and so misjudges threads that a timer wakes.
    """
    used = {}
    for task in Path("/proc/self/task").iterdir():
        name = (
            "main" if task.name == str(os.getpid()) else f"{(task / 'comm').read_text().strip()} {task.name}"
        )
        used[name] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return used


def seconds_of(step: Step, steps: int) -> float:
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - begun


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("how", choices=("ours", "ddp", "alone", "exchange", "sync-bn"))
    p.add_argument("steps", type=int)
    p.add_argument("--cfg", default="yolov5n")
    p.add_argument("--img", type=int, default=160)
    p.add_argument("--images", type=int, default=4, help="of a rank")
    p.add_argument("--fusion-mb", type=float, default=TrainConfig.fusion_mb)
    p.add_argument("--turns", type=int, default=3, help="of sync-bn, without and with it")
    p.add_argument("--at", type=float, default=0, help="alone: begin then, in seconds since 1970")
    return p.parse_args()


def compare_batch_norms(work: Work, steps: int, turns: int) -> None:
    """Without and with synchronised batch norm by turns, in the same processes."""
    comm = connect()
    ways = {"without": ours(work, comm), "with": ours(work, comm, sync_bn=True)}
    for step in ways.values():
        seconds_of(step, WARM_UP)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, step in ways.items():
            rates[way].append(comm.size * work.images * steps / seconds_of(step, steps))
    if comm.rank == 0:
        print(json.dumps(rates), flush=True)
    comm.close()


def main() -> None:
    args = arguments()
    work = Work(args.cfg, args.img, args.images, args.fusion_mb)
    if args.how == "sync-bn":
        compare_batch_norms(work, args.steps, args.turns)
        return
    if args.how == "ddp":
        dist.init_process_group("gloo")
        rank, size, step, leave = (
            dist.get_rank(),
            dist.get_world_size(),
            ddp(work),
            dist.destroy_process_group,
        )
    else:
        comm = LocalCommunicator() if args.how == "alone" else connect()
        step = (exchange if args.how == "exchange" else ours)(work, comm)
        rank, size, leave = comm.rank, comm.size, comm.close
    seconds_of(step, WARM_UP)
    time.sleep(max(args.at - time.time(), 0))
    before = threads()
    seconds = seconds_of(step, args.steps)
    used = {name: round(after - before.get(name, 0), 4) for name, after in threads().items()}
    if rank == 0:
        print(f"images/s {size * work.images * args.steps / seconds:.2f}", flush=True)
        print(json.dumps({"seconds": seconds, "threads": {n: s for n, s in used.items() if s}}), flush=True)
    leave()


if __name__ == "__main__":
    main()
