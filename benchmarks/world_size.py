"""World-size invariance: how far are runs on 2 and 4 ranks from the same run on 1, after 20 steps?

    python benchmarks/world_size.py [--only slices]

Claim: with ``--sync-bn`` no further than one rank is from itself when only the rounding changes; with
``--slices 4`` not at all. The control is one rank with two threads instead of one, which sums in another
order. Two CPU cores take about 20 minutes. With ``--only`` the other settings stay as they were measured.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import described, earlier, machine, parsed, parser, publish, train
from torch import Tensor

from horovod_yolo.data.digits import make_digits

SYNC_BN, SLICES = ("--sync-bn",), ("--slices", "4", "--threads", "1")
SETTINGS = {
    "fp32, lr0 0.0005, no bias warm-up": ("lr0: 0.0005\nwarmup_bias_lr: 0.0\n", SYNC_BN),
    "fp32, default": ("lr0: 0.01\n", SYNC_BN),
    "fp64, default": ("lr0: 0.01\n", (*SYNC_BN, "--precision", "fp64")),
    "fp32, default, `--slices 4`": ("lr0: 0.01\n", SLICES),
}
RUNS = {"1 rank, 2 threads": (1, "2"), "2 ranks": (2, "1"), "4 ranks": (4, "1")}
FLAGS = (
    "--cfg yolov5n --img 128 --batch 13 --epochs 20 --max-steps 20 --noval --noplots --workers 0 "
    "--compression none"
)
LOSSES = ("box_loss", "obj_loss", "cls_loss")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", default="", metavar="WORDS", help="settings whose name has these words")
    args = parsed(options)
    settings = {name: how for name, how in SETTINGS.items() if args.only in name}
    if args.quick:
        settings = dict([*settings.items()][:1])
    measured = earlier("world-size-invariance").get("settings", {}) if args.only else {}
    results: dict[str, Any] = {
        name: measured.get(name, {}) for name in SETTINGS if name in {**measured, **settings}
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_digits(folder / "digits", images=35, size=128, seed=1)
        for setting, (hyp, extra) in settings.items():
            (folder / "hyp.yaml").write_text(hyp)
            one = one_run(folder, setting, "1 rank", 1, "1", extra)
            results[setting] = {
                run: compare(one_run(folder, setting, run, ranks, threads, extra), one)
                for run, (ranks, threads) in runs_of(extra, args.quick).items()
            }
    facts = machine()
    publish("world-size-invariance", {"machine": facts, "settings": results}, table_of(results, facts))


def runs_of(extra: tuple[str, ...], quick: bool) -> dict[str, tuple[int, str]]:
    """Runs that a setting has: one with slices keeps its threads, so there is none with two."""
    names = ["2 ranks"] if quick else ["2 ranks", "4 ranks"] if extra == SLICES else [*RUNS]
    return {name: RUNS[name] for name in names}


def one_run(folder: Path, setting: str, run: str, ranks: int, threads: str, extra: tuple[str, ...]) -> Path:
    project = folder / setting.replace(" ", "_").replace(",", "").replace("`", "")
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
    note = (
        "Relative differences; 28 images in batches of 13, 13 and 2, augmentation on; "
        "`--sync-bn` where no slices are named."
    )
    return "\n".join(lines) + f"\n\n{note} {described(facts)}\n"


if __name__ == "__main__":
    main()
