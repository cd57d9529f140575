"""``horovod-yolo plan``: what a training takes on machines that are described by a few numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.planner import assume, links
from horovod_yolo.planner.devices import Device, device
from horovod_yolo.planner.fit import Calibration, calibrate
from horovod_yolo.planner.links import Link, World
from horovod_yolo.planner.measured import CommFile, Measured, StepFile, small_sum_s
from horovod_yolo.planner.timeline import Compute, Group, StepTime, step_time
from horovod_yolo.planner.workload import Workload, workload

NOMINAL_BATCH = 64  # images of a step, at least: YOLOv5's nbs


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be trained on what. Units are bytes and seconds."""

    cfg: str
    batch: int  # global
    nodes: int
    gpus_per_node: int
    images: int
    epochs: int
    imgsz: int = 640
    classes: int = 80
    device: str = ""  # empty: that of the measurement
    precision: str = "auto"
    bandwidth: float | None = None  # of a node to the others, in each direction
    latency: float | None = None
    price_per_gpu_hour: float | None = None
    allreduce: str = "auto"
    sync_bn: bool = False
    fusion_mb: float | None = None  # of a group; None: as measured, else a run's default
    image_bytes: float = assume.IMAGE_BYTES
    cores_per_node: int | None = None
    storage_bandwidth: float | None = None  # of all nodes together

    @property
    def ranks(self) -> int:
        """One a GPU."""
        return self.nodes * self.gpus_per_node

    @property
    def windows(self) -> int:
        """Global batches whose gradients make a step."""
        return max(round(NOMINAL_BATCH / self.batch), 1)


class Figure(NamedTuple):
    """A number and where it comes from: ``measured``, ``given``, or ``assumed`` with why; else computed."""

    value: float
    basis: str = ""


@dataclass(frozen=True)
class Plan:
    """The answer. Seconds and bytes."""

    question: Question
    precision: str
    compute: Figure  # of a rank in a step
    network: Figure  # of all gradients, had they nothing to hide behind
    exposed: Figure  # of these what the step waits for
    step: Figure
    efficiency: Figure  # of a rank among the others, against the same rank alone
    train_s: Figure
    cost: Figure | None
    memory: Figure  # of a rank
    memory_there: float | None  # of the device
    loader_cores: Figure  # of a node
    storage_bytes_per_s: Figure  # of all nodes
    allreduces: dict[str, float]  # seconds of all gradients by each algorithm
    algorithm: str
    bottleneck: str
    gradient_bytes: float
    links: dict[str, tuple[Link, str]]
    calibration: Calibration

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps."""
        return math.ceil(self.question.images / (self.question.batch * self.question.windows))

    @property
    def images_per_s(self) -> float:
        """Of all ranks."""
        return self.question.batch * self.question.windows / self.step.value


def make_plan(question: Question, measured: Sequence[Measured] = ()) -> Plan:
    """Answer a question from measurements, and from assumptions where there are none.

    Raises:
        UserError: the question contradicts itself or the measurements, or cannot be answered.
    """
    if question.batch < question.ranks:
        raise UserError(
            f"--batch {question.batch}, the total over all ranks, is smaller than the {question.ranks} ranks",
            fix=f"use --batch {question.ranks} or more, or fewer ranks",
        )
    step_files = [found for found in measured if isinstance(found, StepFile)]
    known = step_files[-1] if step_files else None
    comm_files = [found for found in measured if isinstance(found, CommFile)]
    comm_files += [found.comm for found in step_files if found.comm is not None]
    gpu = _gpu(question, known)
    precision = _precision(question, known, gpu)
    work = workload(
        question.cfg, question.classes, question.imgsz, question.fusion_mb or TrainConfig.fusion_mb
    )
    if known is not None:
        _require_same(question, known, precision, work)
    images = math.ceil(question.batch / question.ranks)
    compute, basis = _compute(known, gpu, work, precision, images)
    world, of_links = _world(question, gpu, comm_files)
    factors = _calibration(step_files)
    groups = _groups(known, work, precision, gpu)
    given = question.bandwidth is not None or question.latency is not None  # not the links of the files
    small_s = None if given else small_sum_s(comm_files, question.nodes, question.ranks)
    parts = (question, precision, gpu, work, known, compute, basis, world, of_links, factors, groups, images)
    return _answer(_Parts(*parts, small_s))


class _Parts(NamedTuple):
    question: Question
    precision: str
    gpu: Device | None
    work: Workload
    known: StepFile | None
    compute: Compute
    basis: str
    world: World
    links: dict[str, tuple[Link, str]]
    factors: Calibration
    groups: tuple[Group, ...]
    images: int
    small_s: float | None


def predicted_step(
    compute: Compute,
    groups: Sequence[Group],
    world: World,
    small_sums: int,
    factors: Calibration,
    algorithm: str = "ring",
    small_s: float | None = None,
) -> StepTime:
    """The model: a step whose gradients travel by one algorithm; small sums likewise, or in `small_s`."""

    def seconds(size: float) -> float:
        return factors.network * links.allreduce_s(algorithm, size, world)

    small_s = small_s and factors.network * small_s
    return step_time(compute.scaled(factors.compute), groups, seconds, small_sums=small_sums, small_s=small_s)


def measured_world(comm: CommFile) -> World:
    """The ranks of a measurement, as the ring that its link was fitted by."""
    link = comm.link
    if comm.hosts == 1:
        return World(1, comm.ranks, link, link)
    return World(comm.hosts, comm.ranks // comm.hosts, link, replace(link, latency_s=0.0))


def _calibration(files: Sequence[StepFile]) -> Calibration:
    """From steps that were measured with other ranks: what the model must be multiplied by to give them."""
    cases = [(found, found.comm) for found in files if found.comm is not None]
    if not cases:
        return Calibration()

    def predicted(factors: Calibration) -> list[float]:
        return [
            predicted_step(
                *(found.compute, found.groups, measured_world(comm), found.small_sums, factors),
                small_s=comm.small_sum_s,
            ).step_s
            for found, comm in cases
        ]

    return calibrate(predicted, [found.step_s for found, _ in cases], fits_compute=len(cases) > 1)


def _gpu(question: Question, known: StepFile | None) -> Device | None:
    """The device of the question; None for one that is known by measurement only."""
    if known is None:
        if not question.device:
            raise UserError("neither --device nor --from says what computes", fix="give --device h100")
        return device(question.device)
    if question.device and question.device.lower() not in known.device.lower():
        raise UserError(
            f"--device {question.device}, but the step was measured on {known.device!r}",
            fix="leave out one of them, or measure there",
        )
    name = question.device or known.device
    found = [word for word in name.lower().replace("-", " ").split() if word != "cpu"]
    for word in found:
        try:
            return device(word)
        except UserError:
            continue
    return None


def _precision(question: Question, known: StepFile | None, gpu: Device | None) -> str:
    if question.precision != "auto":
        return question.precision
    return known.precision if known else "fp32" if gpu is None else "fp16"


def _require_same(question: Question, known: StepFile, precision: str, work: Workload) -> None:
    """Raise where the step was measured with other settings than are asked for."""
    if question.fusion_mb is not None:
        raise UserError(
            f"--fusion-mb {question.fusion_mb:g}, but the groups of --from are those that were measured",
            fix="leave it out, or measure with bench step --fusion-mb",
        )
    for flag, asked, found in (
        ("--cfg", work.model, known.cfg),
        ("--img", work.imgsz, known.imgsz),
        ("--precision", precision, known.precision),
    ):
        if asked != found:
            raise UserError(
                f"{flag} {asked}, but the step was measured with {found}", fix="measure it with bench step"
            )


def _compute(
    known: StepFile | None, gpu: Device | None, work: Workload, precision: str, images: int
) -> tuple[Compute, str]:
    if known is None:
        assert gpu is not None, "_gpu() has refused it"
        return assume.compute_of(work, gpu, precision, images), f"assumed from the data sheet of {gpu.name}"
    if known.images == images:
        return known.compute, f"measured on {known.device}"
    share = images / known.images
    scaled = replace(known.compute.scaled(share), update_s=known.compute.update_s)
    return scaled, f"assumed in proportion to the {known.images} images a rank that were measured"


def _world(
    question: Question, gpu: Device | None, files: Sequence[CommFile]
) -> tuple[World, dict[str, tuple[Link, str]]]:
    """The links, of flags first, then of measurements, then of assumptions."""
    between = [found for found in files if found.hosts > 1]
    inside = [found for found in files if found.hosts == 1]
    if inside:
        local = inside[-1].link, "measured"
    elif gpu is not None:
        local = gpu.local, f"assumed from the data sheet of {gpu.name}"
    else:
        local = Link(assume.LOCAL_LATENCY_S, assume.LOCAL_BYTES_PER_S), "assumed"
    found = between[-1].link if between else None
    if question.ranks == 1:
        return World(1, 1, local[0], local[0]), {}
    if question.nodes == 1:
        return World(1, question.gpus_per_node, local[0], local[0]), {"in a node": local}
    if found is None and (question.bandwidth is None or question.latency is None):
        fix = "give --bandwidth 200Gbit --latency 5us, or --from FILE of bench comm over two hosts"
        raise UserError(f"how fast are the {question.nodes} nodes connected?", fix=fix)
    given = question.bandwidth is not None or question.latency is not None
    base = found or Link(0.0, 1.0)
    network = Link(
        base.latency_s if question.latency is None else question.latency,
        base.bytes_per_s if question.bandwidth is None else question.bandwidth,
    )
    world = World(question.nodes, question.gpus_per_node, network, local[0])
    of_links = {"between nodes": (network, "given" if given else "measured")}
    if question.gpus_per_node > 1:
        of_links["in a node"] = local
    return world, of_links


def _groups(known: StepFile | None, work: Workload, precision: str, gpu: Device | None) -> tuple[Group, ...]:
    """As measured; else in float16 where there is a loss scaler, as ``--compression auto`` sends them."""
    if known is not None:
        return known.groups
    factor = 0.5 if precision == "fp16" and gpu is not None else 1.0
    return tuple(replace(group, size=group.size * factor) for group in work.groups)


def _answer(parts: _Parts) -> Plan:
    question, world = parts.question, parts.world
    one = parts.compute
    window = replace(
        one, forward_s=question.windows * one.forward_s + (question.windows - 1) * one.backward_s
    )
    small = parts.work.small_sums(question.sync_bn)
    if parts.known is not None:  # measured with --sync-bn or without, and it may be asked for in addition
        small = max(parts.known.small_sums, small)
    timed = {
        name: predicted_step(window, parts.groups, world, small, parts.factors, name, parts.small_s)
        for name in (links.ALGORITHMS if question.allreduce == "auto" else (question.allreduce,))
    }
    algorithm = min(timed, key=lambda name: timed[name].step_s)
    step = timed[algorithm]
    of_network = _basis([basis for _, basis in parts.links.values()])
    both = _basis([parts.basis, of_network])
    epochs_s = math.ceil(question.images / (question.batch * question.windows)) * step.step_s
    train_s = epochs_s * question.epochs
    memory, of_memory = _memory(parts)
    loader_s, of_loader = _loader(parts)
    rate = question.batch * question.windows / step.step_s
    reads = 1 + 3 * parts.work.mosaic
    price = question.price_per_gpu_hour
    plan = Plan(
        question=question,
        precision=parts.precision,
        compute=Figure(window.step_s * parts.factors.compute, parts.basis),
        network=Figure(step.network_s, of_network),
        exposed=Figure(step.exposed_s, both),
        step=Figure(step.step_s, both),
        efficiency=Figure(window.step_s / step.step_s, both),
        train_s=Figure(train_s, both),
        cost=None if price is None else Figure(price * question.ranks * train_s / 3600, both),
        memory=Figure(memory, of_memory),
        memory_there=parts.gpu.memory_bytes if parts.gpu else None,
        loader_cores=Figure(rate / question.nodes * loader_s, _basis([of_loader, both])),
        storage_bytes_per_s=Figure(rate * reads * question.image_bytes, _basis([_of_files(question), both])),
        allreduces={name: of.network_s for name, of in timed.items()},
        algorithm=algorithm,
        bottleneck="",
        gradient_bytes=sum(group.size for group in parts.groups),
        links=parts.links,
        calibration=parts.factors,
    )
    return replace(plan, bottleneck=bottleneck(plan))


def bottleneck(plan: Plan) -> str:
    """What limits the run first: memory, else what is busy longest in a step.

    How fast data come counts where the question says what the nodes have.
    """
    question = plan.question
    if plan.memory_there is not None and plan.memory.value > plan.memory_there:
        return "memory"
    needs = {"compute": plan.compute.value, "network": plan.network.value}
    if question.cores_per_node:
        needs["loader"] = plan.step.value * plan.loader_cores.value / question.cores_per_node
    if question.storage_bandwidth:
        needs["storage"] = plan.step.value * plan.storage_bytes_per_s.value / question.storage_bandwidth
    return max(needs, key=lambda name: needs[name])


def _memory(parts: _Parts) -> tuple[float, str]:
    if parts.known is not None and parts.known.images == parts.images:
        return parts.known.peak_memory_bytes, f"measured on {parts.known.device}"
    return assume.memory_of(parts.work, parts.precision, parts.images), "assumed from the model's tensors"


def _loader(parts: _Parts) -> tuple[float, str]:
    """Seconds of a core for an image."""
    if parts.known is not None and parts.known.loader_images_per_s is not None:
        return 1 / parts.known.loader_images_per_s, f"measured on {parts.known.device}"
    return assume.loader_s(parts.work.imgsz), "assumed from a core of an AMD EPYC"


def _of_files(question: Question) -> str:
    same = question.image_bytes == assume.IMAGE_BYTES
    return "assumed: files as large as COCO's" if same else "given"


def _basis(parts: Sequence[str]) -> str:
    """Of a figure made of others: assumed where one is."""
    assumed = [basis for basis in parts if basis.startswith("assumed")]
    if assumed:
        return "assumed"
    return "given" if any(basis == "given" for basis in parts) else "measured"
