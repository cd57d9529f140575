"""World-size invariance: how far are runs on 2 and 4 ranks from the same run on 1, after 20 steps?

    python benchmarks/world_size.py

Claim: no further than one rank is from itself when only the rounding changes. The control is one rank with
two threads instead of one, which sums in another order. Two CPU cores take about 15 minutes.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import described, machine, parsed, parser, publish, train
from torch import Tensor

from horovod_yolo.data.digits import make_digits

SETTINGS = {
    "fp32, lr0 0.0005, no bias warm-up": ("lr0: 0.0005\nwarmup_bias_lr: 0.0\n", ()),
    "fp32, default": ("lr0: 0.01\n", ()),
    "fp64, default": ("lr0: 0.01\n", ("--precision", "fp64")),
}
RUNS = {"1 rank, 2 threads": (1, "2"), "2 ranks": (2, "1"), "4 ranks": (4, "1")}
FLAGS = (
    "--cfg yolov5n --img 128 --batch 13 --epochs 20 --max-steps 20 --noval --noplots --workers 0 "
    "--sync-bn --compression none"
)
LOSSES = ("box_loss", "obj_loss", "cls_loss")


def main() -> None:
    args = parsed(parser(__doc__))
    settings = dict([*SETTINGS.items()][:1]) if args.quick else SETTINGS
    runs = {"2 ranks": RUNS["2 ranks"]} if args.quick else RUNS
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_digits(folder / "digits", images=35, size=128, seed=1)
        for setting, (hyp, extra) in settings.items():
            (folder / "hyp.yaml").write_text(hyp)
            one = one_run(folder, setting, "1 rank", 1, "1", extra)
            results[setting] = {
                run: compare(one_run(folder, setting, run, ranks, threads, extra), one)
                for run, (ranks, threads) in runs.items()
            }
    facts = machine()
    publish("world-size-invariance", {"machine": facts, "settings": results}, table_of(results, facts))


def one_run(folder: Path, setting: str, run: str, ranks: int, threads: str, extra: tuple[str, ...]) -> Path:
    project = folder / setting.replace(" ", "_").replace(",", "")
    name = run.replace(" ", "_").replace(",", "")
    place = ["--data", str(folder / "digits" / "data.yaml"), "--hyp", str(folder / "hyp.yaml")]
    flags = [*FLAGS.split(), *place, "--project", str(project), "--name", name, *extra]
    train(flags, ranks, project / f"{name}.log", OMP_NUM_THREADS=threads)
    return project / name


def compare(run: Path, one: Path) -> dict[str, Any]:
    """Largest relative difference of any loss, step by step, and of all weights at the end."""
    pairs = list(zip(losses_of(run), losses_of(one), strict=True))
    by_step = [max(abs(a - b) / (abs(b) or 1) for a, b in zip(*pair, strict=True)) for pair in pairs]
    ours, theirs = weights_of(run), weights_of(one)
    return {"losses": by_step, "weights": float((ours - theirs).norm() / theirs.norm())}


def losses_of(run: Path) -> list[list[float]]:
    with (run / "steps.csv").open(newline="") as file:
        return [[float(row[name]) for name in LOSSES] for row in csv.DictReader(file)]


def weights_of(run: Path) -> Tensor:
    state = torch.load(run / "weights" / "last.pt", weights_only=True)["model"]
    return torch.cat([t.double().flatten() for t in state.values() if t.is_floating_point()])


def table_of(results: dict[str, Any], facts: dict[str, Any]) -> str:
    lines = [
        "| setting | against 1 rank, 1 thread | losses, step 1 | step 5 | step 10 | worst of 20 | weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting, runs in results.items():
        for run, found in runs.items():
            by_step = found["losses"]
            numbers = [by_step[0], by_step[4], by_step[9], max(by_step), found["weights"]]
            lines.append(f"| {setting} | {run} | " + " | ".join(f"{n:.0e}" for n in numbers) + " |")
    note = "Relative differences; 28 images in batches of 13, 13 and 2, augmentation on, `--sync-bn`."
    return "\n".join(lines) + f"\n\n{note} {described(facts)}\n"


if __name__ == "__main__":
    main()
