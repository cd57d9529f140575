"""BCCD blood cells: yolov5n from random weights, 320 px, batch 16, 60 epochs, two ranks, three seeds.

    python benchmarks/bccd.py

Claim: none but the table itself. Hardware: two CPU cores take about 10 minutes a seed. Needs the data set
at ../shared/data/bccd, or --data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, described, machine, parsed, parser, publish, train

NUMBERS = ("mAP50", "mAP50-95", "precision", "recall")


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "bccd" / "data.yaml")
    p.add_argument("--epochs", type=int, default=60)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--ranks", type=int, default=2)
    args = parsed(p, epochs=1, seeds=[0])
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            flags = (
                f"--cfg yolov5n --img 320 --batch 16 --epochs {args.epochs} --seed {seed} "
                f"--workers 0 --cache ram --noplots --name {seed}"
            )
            place = ["--data", str(args.data), "--project", folder]
            train([*flags.split(), *place], args.ranks, Path(folder, f"{seed}.log"))
            runs.append(json.loads(Path(folder, str(seed), "results.json").read_text()))
    facts = machine()
    publish("bccd", {"machine": facts, "epochs": args.epochs, "runs": runs}, table_of(runs, args, facts))


def table_of(runs: list[dict[str, Any]], args: argparse.Namespace, facts: dict[str, Any]) -> str:
    names = [row["name"] for row in runs[0]["metrics"]["per_class"]]
    lines = [
        "| seed | " + " | ".join(NUMBERS) + " | " + " | ".join(f"{n} mAP50" for n in names) + " | images/s |",
        "|---" * (len(NUMBERS) + len(names) + 2) + "|",
    ]
    rows = []
    for run in runs:
        metrics = run["metrics"]
        rows.append([metrics[k] for k in NUMBERS] + [row["mAP50"] for row in metrics["per_class"]])
        numbers = " | ".join(f"{value:.3f}" for value in rows[-1])
        lines.append(f"| {run['seed']} | {numbers} | {run['images_per_s']:.1f} |")
    if len(rows) > 1:
        columns = list(zip(*rows, strict=True))
        spread = " | ".join(f"{statistics.mean(c):.3f} ± {statistics.stdev(c):.3f}" for c in columns)
        lines.append(f"| mean ± sd | {spread} | |")
    note = (
        f"Last epoch (not the best), {args.epochs} epochs, {args.ranks} ranks, default hyperparameters, "
        f"random initial weights. {described(facts)}"
    )
    return "\n".join(lines) + f"\n\n{note}\n"


if __name__ == "__main__":
    main()
