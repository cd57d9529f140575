"""One of the ranks whose speed `slices.py` compares: the same steps in several ways by turns.

    torchrun --nproc-per-node 2 benchmarks/slices_rank.py sums|slices STEPS ...

``sums``: each rank has one slice, and gradients are added up as floats or as integers, these in memory that
the ranks share and through the engine, as between hosts. ``slices``: one process has the batch in one pass,
or in four slices, or goes through it in as many bare passes of PyTorch's.
Rank 0 prints the images a second of each turn, as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from engines_rank import CLASSES, CPU, WARM_UP, Step, Work, seconds_of
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_yolo.assembly.build import build_stepper
from horovod_yolo.assembly.model import build_criterion
from horovod_yolo.core.precision import Precision
from horovod_yolo.distributed import host_memory
from horovod_yolo.distributed.backends import connect
from horovod_yolo.distributed.communicator import Communicator, GradientExchange, Pending
from horovod_yolo.distributed.gradient_groups import grouped
from horovod_yolo.distributed.local import LocalCommunicator, NoExchange
from horovod_yolo.families import zoo
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.optimizers import make_optimizer

PARTS = 4  # of the batch of one process
BARE = f"{PARTS} bare passes"
SENT = "exact, sent"
FLOAT, EXACT = {"sums": "float"}, {"sums": "exact"}
Ways = dict[str, dict[str, Any]]


def ways_of(how: str, ranks: int) -> Ways:
    """What is compared, the usual first."""
    if how == "sums":
        return {"float": {**FLOAT, "slices": ranks}, "exact": {**EXACT, "slices": ranks}}
    return {"one pass": {**FLOAT, "slices": 1}, f"{PARTS} slices": {**EXACT, "slices": PARTS}}


def step_of(work: Work, comm: Communicator, settings: dict[str, Any]) -> Step:
    """A step of this project's. *Collective.*"""
    config = replace(work.config(comm.size), **settings)
    torch.manual_seed(0)
    model = zoo.build_model(work.cfg, CLASSES)
    criterion = build_criterion(model, config)
    precision = Precision(device=CPU, dtype=torch.float32)
    stepper = build_stepper(config, model, criterion, comm, precision, StopRequest())
    here = len(stepper.slices)
    sizes = (work.images // here,) * here if here > 1 else ()
    batch = replace(work.batch_of(comm.rank), slices=sizes)
    return lambda: stepper.step(iter([batch]), [1.0]).result()


def bare(work: Work) -> Step:
    """Passes of a part of the batch each, with losses divided by its own normalisers: no step can cost less.

    Nothing is rounded, kept or summed but the gradients, which PyTorch adds up, and no running statistics are
    put together.
    """
    torch.manual_seed(0)
    model = zoo.build_model(work.cfg, CLASSES).train()
    criterion = build_criterion(model, work.config(1))
    optimizer = make_optimizer("SGD", model, lr=0.01, momentum=0.9, decay=0.0005)
    parts = [*work.batch_of(0).split(PARTS)]

    def step() -> None:
        for part in parts:
            predictions = model(part.images.float() / 255)
            with torch.no_grad():
                matches = criterion.match(part.targets, (work.side, work.side), predictions)
            totals = by_name(criterion, count(criterion, [matches], work.images))
            criterion(predictions, matches, totals).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


class Counting(LocalCommunicator):
    """One rank, which counts what it would send over links."""

    def __init__(self) -> None:
        self.bytes = self.sums = 0

    def count(self, tensor: Tensor) -> None:
        """A tensor leaves."""
        self.bytes, self.sums = self.bytes + tensor.nbytes, self.sums + 1

    def allreduce_sum(self, tensor: Tensor, name: str) -> Pending:
        """The tensor itself."""
        self.count(tensor)
        return super().allreduce_sum(tensor, name)

    allreduce_max = sum_in_place = allreduce_sum

    def exchange_gradients(
        self, optimizer: Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]], **how: Any
    ) -> tuple[Optimizer, GradientExchange]:
        """As floats, in the groups of `grouped`."""
        parameters = [parameter for _, parameter in named_parameters]
        return optimizer, Floats(self, grouped(parameters, how["group_mb"] * 2**20))


class Floats(NoExchange):
    """Gradients that are sent as they are."""

    def __init__(self, comm: Counting, groups: list[list[nn.Parameter]]) -> None:
        self._comm, self._groups = comm, groups

    def finish(self) -> bool:
        """Each group leaves."""
        for group in self._groups:
            self._comm.count(torch.cat([parameter.detach().flatten() for parameter in group]))
        return True


def bytes_a_value(work: Work) -> float:
    """Bytes that a rank gives to sums over links in a step with exact sums, for each gradient."""
    comm = Counting()
    step = step_of(work, comm, ways_of("slices", 1)[f"{PARTS} slices"])
    step()  # the first may be made twice: nothing is known of its gradients
    comm.bytes = 0
    step()
    gradients = sum(p.numel() for p in zoo.build_model(work.cfg, CLASSES).parameters())
    return comm.bytes / gradients


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("how", choices=("sums", "slices"))
    p.add_argument("steps", type=int)
    p.add_argument("--cfg", default="yolov5n")
    p.add_argument("--img", type=int, default=320)
    p.add_argument("--images", type=int, default=8, help="of a rank")
    p.add_argument("--turns", type=int, default=3)
    args = p.parse_args()
    work = Work(args.cfg, args.img, args.images)
    comm = connect()
    ways = ways_of(args.how, comm.size)
    steps = {way: step_of(work, comm, settings) for way, settings in ways.items()}
    if args.how == "slices":
        steps[BARE] = bare(work)
    else:
        with mock.patch.object(host_memory, "MOST_BYTES", 0):  # as if the ranks were on hosts of their own
            steps[SENT] = step_of(work, comm, ways["exact"])
    for step in steps.values():
        seconds_of(step, WARM_UP)
    rates: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(args.turns):
        for way, step in steps.items():
            rates[way].append(comm.size * work.images * args.steps / seconds_of(step, args.steps))
    if comm.rank == 0:
        sent = bytes_a_value(work) if args.how == "sums" else 0.0
        print(json.dumps({"images_per_s": rates, "bytes_a_value": sent}), flush=True)
    comm.close()


if __name__ == "__main__":
    main()
