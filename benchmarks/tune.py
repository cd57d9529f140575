"""What a search for hyperparameters is worth: its best setting and the default, each trained anew.

    python benchmarks/tune.py [--table]

Claim: none but the table itself. ``horovod-yolo tune`` searches eight hyperparameters of yolov5n on the
built-in set at 128 px with one seed; then the best setting and the default are trained with three seeds that
the search has not used, in pairs. The last epoch counts. A step for each batch of 16, AdamW; what is not
searched stays as it is by default. One thread, one training at a time: two minutes each, 45 minutes in all.
Start the script again to go on: what has ended is kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from common import (
    ROOT,
    described,
    environment,
    interval,
    machine,
    paired,
    parsed,
    parser,
    publish,
    runs,
    spread,
    train,
)

from horovod_yolo.data.digits import make_digits

SEED = 0  # of the search
DEFAULT, BEST = "default", "best"
SHARED = "--cfg yolov5n --batch 16 --img 128 --optimizer AdamW --workers 0 --cache ram --device cpu --noplots"
FIXED = ["--hyp", '{"nbs": 16}']  # of the search and the default: 320 images are few steps of 64
SPACE = {
    "lr0": {"low": 5e-4, "high": 0.02, "log": True},
    "momentum": {"low": 0.7, "high": 0.98},
    "warmup_epochs": {"low": 0.0, "high": 3.0},
    "box": {"low": 0.02, "high": 0.2, "log": True},
    "cls": {"low": 0.1, "high": 2.0, "log": True},
    "scale": {"low": 0.0, "high": 0.7},
    "fliplr": {"low": 0.0, "high": 0.5},
    "mosaic": {"low": 0.0, "high": 1.0},
}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--trials", type=int, default=16)
    p.add_argument("--epochs", type=int, default=12)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--images", type=int, default=400, help="of the built-in set")
    p.add_argument("--folder", type=Path, help="keeps what is done")
    p.add_argument("--table", action="store_true", help="train nothing: publish what is there")
    args = parsed(p, trials=2, epochs=1, seeds=1, images=40)
    args.folder = (args.folder or runs("tune-worth")).resolve()
    if not args.table:
        carry_out(args)
    rows, facts = [row_of(args, way) for way in (DEFAULT, BEST)], machine()
    search = search_of(args)
    results = {"machine": facts, "search": search, "rows": rows}
    publish("tune", results, table_of(args, rows, search, facts))


def carry_out(args: argparse.Namespace) -> None:
    """Search, and train what has not ended, both ways of a seed before the next."""
    args.folder.mkdir(parents=True, exist_ok=True)
    data = args.folder / "data" / "digits" / "data.yaml"
    if not data.exists():
        data.parent.parent.mkdir(parents=True, exist_ok=True)
        make_digits(data.parent, images=args.images)
    flags = [*SHARED.split(), "--data", str(data), "--epochs", str(args.epochs)]
    search(args, flags)
    for seed in range(SEED + 1, SEED + 1 + args.seeds):
        for way in (DEFAULT, BEST):
            run = args.folder / f"{way}-{seed}"
            if not (run / "results.json").exists():
                hyp = ["--hyp", str(args.folder / "search" / "best.yaml")] if way == BEST else FIXED
                place = ["--project", str(run.parent), "--name", run.name, "--resume", "auto"]
                words = [*flags, "--noval", "--seed", str(seed), *hyp, *place]
                train(words, 1, run.with_suffix(".log"), OMP_NUM_THREADS="1")


def search(args: argparse.Namespace, flags: list[str]) -> None:
    """Begin the search, or go on with it; one that is over ends at once."""
    folder, space = args.folder / "search", args.folder / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    begin = [*flags, *FIXED, "--seed", str(SEED), "--space", str(space), "--trials", str(args.trials)]
    begin += ["--project", str(folder.parent), "--name", folder.name]
    words = ["--resume", str(folder)] if (folder / "journal.log").exists() else begin
    command = [sys.executable, "-m", "horovod_yolo.cli", "tune", *words]
    print("$", " ".join(command), flush=True)
    with (args.folder / "search.log").open("a") as log:
        subprocess.run(
            command, cwd=ROOT, env=environment(ROOT), stdout=log, stderr=subprocess.STDOUT, check=True
        )


def search_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the search found, by itself."""
    with (args.folder / "search" / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    best = max(
        (trial for trial in trials if trial["state"] == "done"), key=lambda trial: float(trial["value"])
    )
    states = [trial["state"] for trial in trials]
    return {
        "trials": len(trials),
        "pruned": states.count("pruned"),
        "default": float(trials[0]["value"]),
        "best": float(best["value"]),
        "params": {name: float(best[name]) for name in SPACE},
    }


def row_of(args: argparse.Namespace, way: str) -> dict[str, Any]:
    """The mAP of a way, by seed, of the trainings that have ended."""
    found: dict[str, dict[int, float]] = {"mAP50": {}, "mAP50-95": {}}
    for seed in range(SEED + 1, SEED + 1 + args.seeds):
        results = args.folder / f"{way}-{seed}" / "results.json"
        if results.exists():
            metrics = json.loads(results.read_text())["metrics"]
            for name, values in found.items():
                values[seed] = metrics[name]
    return {"way": way, **found}


def table_of(
    args: argparse.Namespace, rows: list[dict[str, Any]], search: dict[str, Any], facts: dict[str, Any]
) -> str:
    default, best = rows
    lines = [
        "| hyperparameters | mAP50-95, mean ± standard deviation (seeds) | mAP50 | fitness in the search |",
        "|---|---|---|---|",
    ]
    for row in rows:
        words = f"{spread(row['mAP50-95'].values())} ({len(row['mAP50-95'])})"
        lines.append(
            f"| {row['way']} | {words} | {spread(row['mAP50'].values())} | {search[row['way']]:.3f} |"
        )
    gains = [best["mAP50-95"][seed] - default["mAP50-95"][seed] for seed in best["mAP50-95"]]
    centre, half = paired(gains)
    drawn = ", ".join(f"`{name}` {value:.3g}" for name, value in search["params"].items())
    about = (
        f"{search['trials']} trials of {args.epochs} epochs, {search['pruned']} of them pruned; "
        f"the other columns are of seeds that the search did not use. "
        f"Best minus default, paired by seed: {centre:+.3f} mAP50-95, "
        f"{interval(centre, half)}. Best: {drawn}. "
        f"yolov5n from random weights, digits at 128 px, batch and nbs 16, AdamW; last epoch."
    )
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
