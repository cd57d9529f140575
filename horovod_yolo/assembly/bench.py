"""``horovod-yolo bench``: what a network and a step take on these ranks, for the planner."""

from __future__ import annotations

import gc
import resource
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from horovod_yolo.assembly.auto_optimizer import with_optimizer
from horovod_yolo.assembly.build import (
    build_loader_alone,
    build_stepper,
    wire_type,
)
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.device import (
    agreed_device,
    arithmetic,
    choose_precision,
    device_name,
    precision_name,
)
from horovod_yolo.assembly.input_size import require_cells, round_to_stride
from horovod_yolo.assembly.model import build_criterion
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.run_folder import versions
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Batch, Targets
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator, GradientExchange
from horovod_yolo.distributed.gradient_groups import grouped
from horovod_yolo.distributed.local import LocalCommunicator, NoExchange
from horovod_yolo.families import zoo
from horovod_yolo.losses.criterion import Criterion
from horovod_yolo.planner.comm import measure_allreduce, measure_small_sum, wait_for
from horovod_yolo.planner.measured import CommFile, StepFile
from horovod_yolo.planner.timeline import Compute, Group
from horovod_yolo.process.stop import StopRequest

WARM_UP = 2  # steps
CLASSES, BOXES = 80, 8  # of made-up images
COCO_IMAGES = 118_287  # to train on: --optimizer auto goes by the length of the run
LOADED_IMAGES = 64  # for the rate of a core
MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class CommOptions:
    """Flags of ``bench comm``."""

    device: str = ""
    max_mb: float = 64.0  # of the largest message
    seconds: float = 20.0  # for all of it, about


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Flags of ``bench step``."""

    settings: dict[str, Any]  # of a run, as `settings_of` takes them
    steps: int = 10
    seconds: float = 20.0  # for the sums over ranks


def bench_comm(options: CommOptions, comm: Communicator) -> CommFile:
    """Measure sums over the ranks. *Collective.*

    Raises:
        UserError: there is one rank only.
    """
    together(comm, lambda: _require_others(comm))
    device = agreed_device(options.device, comm)
    return _comm_file(comm, device, int(options.max_mb * MEBIBYTE), options.seconds)


def bench_step(options: StepOptions, comm: Communicator) -> StepFile:
    """Measure the parts of a step on all ranks at once, without their exchanges and with them. *Collective.*

    Raises:
        UserError: a mistake in the settings or the data.
    """
    config = together(comm, lambda: _config(options.settings, comm))
    device = agreed_device(config.device, comm)
    precision = precision_name(config.precision, device)
    with arithmetic(precision):
        loader_rate = _loader_rate(config, comm) if config.data else None
        alone = _Steps(config, device, LocalCommunicator(), comm)
        step_s, memory = alone.run(options.steps), _peak_memory(device)
        compute, groups, small_sums = alone.compute(), alone.groups(), alone.small_sums
        del alone
        gc.collect()  # a model and its hooks hold one another; two models may be too much for a GPU
        if comm.size > 1:
            step_s = _Steps(config, device, comm, comm).run(options.steps)
        largest = int(max(group.size for group in groups))
        network = _comm_file(comm, device, largest, options.seconds) if comm.size > 1 else None
    everyone = comm.allgather_object((compute, groups, step_s, memory, loader_rate))
    slowest = max(everyone, key=lambda of: of[0].step_s)
    rates = [rate for *_, rate in everyone if rate is not None]
    return StepFile(
        cfg=zoo.model_name(config.cfg),
        imgsz=config.imgsz,
        images=config.batch_size // comm.size,
        precision=precision,
        device=device_name(device),
        ranks=comm.size,
        hosts=_hosts(comm),
        compute=slowest[0],
        step_s=max(of[2] for of in everyone),
        groups=slowest[1],
        small_sums=small_sums,
        peak_memory_bytes=float(max(of[3] for of in everyone)),
        loader_images_per_s=min(rates) if rates else None,
        comm=network,
        about=_about(),
    )


class _Steps:
    """Training steps on one made-up batch, with the times of their parts."""

    def __init__(
        self, config: TrainConfig, device: torch.device, comm: Communicator, world: Communicator
    ) -> None:
        """*Collective* of ``comm``: the ranks that exchange, this one alone or all of ``world``."""
        self._device = device
        torch.manual_seed(config.seed)
        model = zoo.build_model(config.cfg, CLASSES).to(device)
        precision = choose_precision(config.precision, device)
        criterion = build_criterion(model, config)
        ends = _NotingEnd(self._mark) if comm.size == 1 else comm
        noting = cast(Criterion[Any, Any], _NotingLoss(criterion, self._mark))
        self._stepper = build_stepper(config, model, noting, ends, precision, StopRequest())
        self.small_sums = 1 + criterion.matching_needs_predictions
        if config.sync_bn:
            self.small_sums += 2 * sum(isinstance(one, nn.BatchNorm2d) for one in model.modules())
        wire = wire_type(config.compression, self._stepper.scaler, device, world)
        self._groups = [tuple(of) for of in grouped(model.trained, config.fusion_mb * MEBIBYTE)]
        self._sizes = [sum(p.numel() * (wire or p.dtype).itemsize for p in of) for of in self._groups]
        self._batch = _made_up(config.batch_size // world.size, config.imgsz, world.rank)
        self._marks: list[float] = []
        self._parts: list[tuple[float, float, float]] = []
        self._ready: list[list[float]] = []
        self._brought: dict[nn.Parameter, float] = {}
        if comm.size == 1:
            for parameter in model.trained:
                parameter.register_post_accumulate_grad_hook(self._note)  # type: ignore[no-untyped-call]

    def run(self, steps: int) -> float:
        """Seconds of a step, the median. *Collective.*"""
        taken = []
        for number in range(WARM_UP + steps):
            wait_for(self._device)
            self._marks = [time.perf_counter()]
            self._stepper.step(iter([self._batch]), [1.0])
            self._mark()
            if number >= WARM_UP:
                self._keep()
                taken.append(self._marks[-1] - self._marks[0])
        return float(np.median(taken))

    def compute(self) -> Compute:
        """The medians of the parts."""
        return Compute(*np.median(self._parts, axis=0).tolist())

    def groups(self) -> tuple[Group, ...]:
        """The messages of gradients, with the moments at which they were ready."""
        ready = np.median(self._ready, axis=0).tolist()
        return tuple(Group(float(size), at) for size, at in zip(self._sizes, ready, strict=True))

    def _mark(self) -> None:
        wait_for(self._device)
        self._marks.append(time.perf_counter())

    def _note(self, parameter: Any) -> None:
        self._brought[parameter] = time.perf_counter()

    def _keep(self) -> None:
        """Alone: forward until the loss, backward until all gradients are there, and the rest."""
        if not self._brought:
            return
        begun, loss, gradients, end = self._marks
        self._parts.append((loss - begun, gradients - loss, end - gradients))
        last = [max(self._brought[parameter] for parameter in of) for of in self._groups]
        self._ready.append([min(max((at - loss) / (gradients - loss), 0.0), 1.0) for at in last])


class _NotingLoss:
    """A criterion that says when the loss is there."""

    def __init__(self, criterion: Any, note: Callable[[], None]) -> None:
        self._criterion = criterion
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._criterion, name)

    def __call__(self, *given: Any) -> Any:
        return self._noted(self._criterion(*given))

    def undivided(self, *given: Any) -> Any:
        return self._noted(self._criterion.undivided(*given))

    def _noted(self, loss: Any) -> Any:
        self._note()
        return loss


class _NotingEnd(LocalCommunicator):
    """One rank, which says when all of its gradients are there."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def exchange_gradients(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        wire: torch.dtype | None,
        group_mb: float,
    ) -> tuple[Optimizer, GradientExchange]:
        """Nothing is exchanged."""
        return optimizer, _NotingExchange(self._note)


class _NotingExchange(NoExchange):
    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def finish(self) -> bool:
        self._note()
        return True


def _config(settings: dict[str, Any], comm: Communicator) -> TrainConfig:
    """The settings of a run with this batch.

    Raises:
        UserError: the batch cannot be shared equally, or a mistake in the settings.
    """
    config = settings_of({"data": "", **settings})
    if config.batch_size % comm.size:
        raise UserError(
            f"--batch-size {config.batch_size} is no multiple of the {comm.size} ranks",
            fix="measure with equal shares",
        )
    config = with_optimizer(config, COCO_IMAGES, CLASSES, None)
    stride = max(zoo.spec_of(config.cfg).strides)
    config = replace(config, imgsz=round_to_stride(config.imgsz, stride))
    require_cells(config, stride, resumed=False)
    return config


def _made_up(images: int, side: int, seed: int) -> Batch:
    """Noise with boxes on it: what is on an image changes no time."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (images, 3, side, side), generator=rng, dtype=torch.uint8)
    boxes = torch.rand(BOXES * images, 4, generator=rng) * torch.tensor([0.8, 0.8, 0.3, 0.3]) + 0.1
    classes = torch.randint(CLASSES, (BOXES * images,), generator=rng)
    return Batch(
        pixels,
        Targets(torch.arange(images).repeat_interleave(BOXES), classes, boxes),
        torch.arange(images),
        (),
    )


def _loader_rate(config: TrainConfig, comm: Communicator) -> float:
    """Images a second that one core reads and augments for training, after a first batch. *Collective.*"""
    config = replace(config, data=data_here(config.data, comm))
    spec = together(comm, lambda: load_data_yaml(Path(config.data)))
    data = build_data(spec, config, comm)
    model = zoo.build_model(config.cfg, len(spec.names))
    loader = build_loader_alone(config, data.train, comm, model)
    batches = chain.from_iterable(loader.epoch(epoch) for epoch in count())
    next(batches)  # opens files, and fills caches
    made, begun = 0, time.perf_counter()
    while made < LOADED_IMAGES:
        made += max(len(next(batches)), 1)  # of a small set a rank's slice may be empty
    seconds = time.perf_counter() - begun
    loader.close()
    return made / seconds


def _require_others(comm: Communicator) -> None:
    if comm.size == 1:
        raise UserError(
            "bench comm measures sums over ranks, and there is one",
            fix="start it with torchrun, horovodrun or mpirun on two or more",
        )


def _comm_file(comm: Communicator, device: torch.device, largest: int, seconds: float) -> CommFile:
    """*Collective.*"""
    times = measure_allreduce(comm, device, largest, seconds)
    engine = type(comm).__name__.removesuffix("Communicator").lower()
    small_s = measure_small_sum(comm, device)
    return CommFile(device_name(device), comm.size, _hosts(comm), engine, tuple(times), _about(), small_s)


def _hosts(comm: Communicator) -> int:
    """*Collective.*"""
    return len(set(comm.allgather_object(socket.gethostname())))


def _peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU what PyTorch has taken at most, of a host what the process has held at most."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(getattr(torch, device.type).max_memory_reserved(device))


def _about() -> dict[str, Any]:
    return {"versions": versions(), "host": socket.gethostname(), "threads": torch.get_num_threads()}
