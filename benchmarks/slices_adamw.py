"""AdamW with sums of integers against sums of floats: 500 steps, and the share of gradients rounded to 0.

    python benchmarks/slices_adamw.py [--steps 500]

Claim: 500 steps with exact sums end no further from those with sums of floats than these end from themselves
when each initial weight is changed by a relative 1e-7. yolov5n on digits at 96 px, four slices of four images
in one process, AdamW. On one core about ten minutes.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import described, machine, parsed, parser, publish
from torch import Tensor

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.data.digits import make_digits
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.exact_sums import ExactExchange
from horovod_yolo.distributed.gradient_groups import Group
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.training.events import Callback, StepReport

HYP = {"nbs": 16, "lr0": 0.003, "lrf": 0.02, "warmup_epochs": 1, "warmup_bias_lr": 0.01, "mosaic": 0.0}
WAYS = {"float": ("float", 0.0), "float, weights changed by 1e-7": ("float", 1e-7), "exact": ("exact", 0.0)}
AVERAGED = 50  # last steps
Lost = list[tuple[int, int]]  # gradients that are not 0, and those of them that are rounded to it, by slice


class Losses(Callback):
    """The sum of the loss terms of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step(self, report: StepReport) -> None:
        """Keep it."""
        self.found.append(sum(report.result.losses.values()))


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--steps", type=int, default=500)
    args = parsed(p, steps=20)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        data = Path(name, "digits")
        make_digits(data, images=300, size=128)
        found = {way: trained(data, args.steps, *how) for way, how in WAYS.items()}
    reference = found["float"].pop("weights")
    rows = [{"way": "float", **found["float"]}]
    for way in [*WAYS][1:]:
        weights = found[way].pop("weights")
        rows.append(
            {"way": way, **found[way], "apart": float((weights - reference).norm() / reference.norm())}
        )
    facts = machine()
    publish("slices-adamw", {"machine": facts, "steps": args.steps, "rows": rows}, table_of(rows, facts))


def trained(folder: Path, steps: int, sums: str, change: float) -> dict[str, Any]:
    """A run of so many steps: losses, mAP, weights, and what was rounded to 0."""
    flags = {"cfg": "yolov5n", "imgsz": 96, "batch_size": 16, "slices": 4, "sums": sums, "optimizer": "AdamW"}
    run = {"epochs": 1 + steps // 15, "max_steps": steps, "workers": 0, "cache": "ram", "noval": True}
    config = settings_of({"data": str(folder / "data.yaml"), **flags, **run, "hyp": HYP})
    alone, losses, lost = LocalCommunicator(), Losses(), Lost()
    data = build_data(load_data_yaml(Path(config.data)), config, alone)
    trainer = build_trainer(config, data, alone, [losses], None)
    model, exchange = trainer.stepper.model, trainer.stepper.exchange
    if change:
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + change * torch.randn(p.shape, generator=rng))
    if isinstance(exchange, ExactExchange):
        count_zeros(exchange, lost)
    trainer.fit()
    trainer.close()
    return {
        "loss": statistics.fmean(losses.found[-AVERAGED:]),
        "mAP50-95": trainer.metrics["mAP50-95"],
        "rounded_to_zero": rounded(lost),
        "weights": torch.cat([p.detach().double().flatten() for p in model.parameters()]),
    }


def count_zeros(exchange: ExactExchange, lost: Lost) -> None:
    """Look at each gradient before it becomes an integer."""
    fill = exchange._fill

    def look(group: Group, gradients: list[Tensor]) -> None:
        for gradient, factor in zip(gradients, exchange._factors[group.numbers], strict=True):
            lost.append(zeros(gradient, factor))
        fill(group, gradients)

    exchange._fill = look  # type: ignore[method-assign]


def zeros(gradient: Tensor, factor: float) -> tuple[int, int]:
    some = gradient != 0
    return int(some.sum()), int((some & ((gradient * factor).round() == 0)).sum())


def rounded(lost: Sequence[tuple[int, int]]) -> float | None:
    """The share; None where nothing is rounded."""
    return sum(zero for _, zero in lost) / sum(some for some, _ in lost) if lost else None


def table_of(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    lines = [
        f"| sums | loss, last {AVERAGED} steps | mAP50-95 | weights, relative distance to `float` | "
        "gradients rounded to 0 |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        apart = f"{row['apart']:.1e}" if "apart" in row else ""
        share = "" if row["rounded_to_zero"] is None else f"{row['rounded_to_zero']:.2e}"
        lines.append(f"| {row['way']} | {row['loss']:.4f} | {row['mAP50-95']:.3f} | {apart} | {share} |")
    about = "yolov5n, digits at 96 px, four slices of four images in one process, AdamW at 0.003; one seed."
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
