"""Plans and measurements for people, and plans for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from horovod_yolo.planner.links import Link
from horovod_yolo.planner.measured import CommFile, StepFile
from horovod_yolo.planner.plan import Figure, Plan

GIB = 2**30
_ADVICE = {
    "compute": "more GPUs shorten the run as long as the efficiency holds",
    "network": "a larger batch, --compression fp16 or bf16, or a faster network",
    "memory": "more ranks, a smaller --batch, or micro-batches",
    "loader": "more cores a node, --cache ram or disk, or smaller files",
    "storage": "--cache ram or disk, smaller files, or data on each node's own disk",
}


def plan_lines(plan: Plan) -> list[str]:
    """A plan as people read it, a line a figure."""
    question = plan.question
    images = -(-question.batch // question.ranks)
    head = (
        f"{question.cfg} at {question.imgsz} px in {plan.precision} on {question.ranks} ranks "
        f"({question.nodes} x {question.gpus_per_node}), {images} images a rank"
    )
    lines = [head, *_step_rows(plan), *_run_rows(plan)]
    lines.append(f"first bottleneck: {plan.bottleneck}: {_ADVICE[plan.bottleneck]}")
    return lines


def _step_rows(plan: Plan) -> list[str]:
    others = ", ".join(f"{name} {seconds_text(value)}" for name, value in plan.allreduces.items())
    rows = [
        _row("step", seconds_text(plan.step.value), plan.step),
        _row("  compute", seconds_text(plan.compute.value), plan.compute),
        _row("  network", f"{seconds_text(plan.network.value)} by {plan.algorithm}", plan.network),
        _row("  not hidden", seconds_text(plan.exposed.value), plan.exposed),
    ]
    if plan.question.ranks > 1:
        rows.append(f"  {'allreduce':<18}{others} for {plan.gradient_bytes / 1e6:.1f} MB of gradients")
    rows += [f"  {name:<18}{link_text(link)} ({basis})" for name, (link, basis) in plan.links.items()]
    if (factors := plan.calibration) != type(factors)():
        rows.append(f"  {'calibration':<18}compute x {factors.compute:.2f}, network x {factors.network:.2f}")
    return [*rows, _row("efficiency", f"{plan.efficiency.value:.1%}", plan.efficiency)]


def _run_rows(plan: Plan) -> list[str]:
    question = plan.question
    train = (
        f"{duration_text(plan.train_s.value)} for {question.epochs} epochs of {plan.steps_per_epoch} steps"
    )
    there = "" if plan.memory_there is None else f" of {plan.memory_there / GIB:.0f} GiB"
    rows = [
        _row("images/s", f"{plan.images_per_s:.0f}", plan.step),
        _row("time to train", train, plan.train_s),
    ]
    if plan.cost is not None:
        rows.append(_row("cost", f"{plan.cost.value:,.2f}", plan.cost))
    rows.append(_row("memory of a rank", f"{plan.memory.value / GIB:.1f} GiB{there}", plan.memory))
    rows.append(_row("loader", f"{plan.loader_cores.value:.1f} cores a node", plan.loader_cores))
    storage = f"{plan.storage_bytes_per_s.value / 1e6:.0f} MB/s for all nodes, without --cache"
    return [*rows, _row("storage", storage, plan.storage_bytes_per_s)]


def _row(name: str, text: str, figure: Figure) -> str:
    return f"{name:<20}{text}" + (f" ({figure.basis})" if figure.basis else "")


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan for programs: seconds, bytes, and the basis of each figure."""
    found = asdict(plan)
    for name, value in vars(plan).items():
        if isinstance(value, Figure):
            found[name] = {"value": value.value, "basis": value.basis}
    found["links"] = {name: {**asdict(link), "basis": basis} for name, (link, basis) in plan.links.items()}
    return {**found, "steps_per_epoch": plan.steps_per_epoch, "images_per_s": plan.images_per_s}


def comm_lines(found: CommFile) -> list[str]:
    """A table of sums by size, and the link that fits it."""
    lines = [f"sums over {found.ranks} ranks on {found.hosts} hosts, {found.engine}, {found.device}"]
    lines.append(f"{'bytes':>12} {'time':>12} {'bus bandwidth':>16}")
    for size, seconds in found.allreduce:
        bus = 2 * (found.ranks - 1) / found.ranks * size / seconds
        lines.append(f"{size:>12.0f} {seconds_text(seconds):>12} {bus * 8 / 1e6:>11.1f} Mbit/s")
    if found.small_sum_s is not None:
        lines.append(f"a sum of a few numbers: {seconds_text(found.small_sum_s)}")
    return [*lines, f"as a ring: {link_text(found.link)}"]


def step_lines(found: StepFile) -> list[str]:
    """The parts of a step."""
    parts = found.compute
    lines = [
        f"{found.cfg} at {found.imgsz} px in {found.precision}, {found.images} images a rank, "
        f"{found.ranks} ranks on {found.hosts} hosts, {found.device}",
        f"forward and loss {seconds_text(parts.forward_s)}, backward {seconds_text(parts.backward_s)}, "
        f"optimizer {seconds_text(parts.update_s)}",
        f"step {seconds_text(found.step_s)}, {found.ranks * found.images / found.step_s:.1f} images/s",
        f"gradients {sum(of.size for of in found.groups) / 1e6:.1f} MB in {len(found.groups)} groups",
        f"peak memory {found.peak_memory_bytes / GIB:.2f} GiB",
    ]
    if found.loader_images_per_s is not None:
        lines.append(f"loader {found.loader_images_per_s:.1f} images/s a core")
    return lines + ([] if found.comm is None else comm_lines(found.comm)[-1:])


def link_text(link: Link) -> str:
    """Latency and bandwidth."""
    bits = 8 * link.bytes_per_s
    speed = f"{bits / 1e9:.4g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.4g} Mbit/s"
    return f"{seconds_text(link.latency_s)}, {speed}"


def seconds_text(seconds: float) -> str:
    """Three digits in a fitting unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def duration_text(seconds: float) -> str:
    """Minutes, hours or days."""
    for unit, factor in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.1f} s"
