"""The demo: digits reach mAP50 0.80 within 6 minutes on two CPU cores.

    python benchmarks/demo.py

Runs ``make demo`` as it stands, set-up done before, and writes what it printed into the table.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import time
from pathlib import Path

from common import ROOT, described, machine, parsed, parser, publish, runs

GOAL = 0.80


def main() -> None:
    args = parsed(parser(__doc__))
    run = runs("demo")
    subprocess.run(["make", "setup"], cwd=ROOT, check=True)
    shutil.rmtree(run, ignore_errors=True)
    start = time.monotonic()
    few = [f"DEMO_RUN={run.relative_to(ROOT)}", "DEMO_EPOCHS=1"] if args.quick else []
    subprocess.run(["make", "demo", *few], cwd=ROOT, check=True)
    wall_s = time.monotonic() - start
    results = json.loads((run / "results.json").read_text())
    facts = machine()
    reached = first_epoch_at_goal(run / "results.csv")
    metrics = results["metrics"]
    table = (
        "| epochs | mAP50 | mAP50-95 | reached 0.80 in epoch | images/s | training | `make demo` in all |\n"
        "|---|---|---|---|---|---|---|\n"
        f"| {results['epochs']} | {metrics['mAP50']:.3f} | {metrics['mAP50-95']:.3f} | {reached or 'none'} | "
        f"{results['images_per_s']:.1f} | {results['wall_s'] / 60:.1f} min | {wall_s / 60:.1f} min |"
    )
    recorded = {"machine": facts, "make_demo_s": wall_s, "results": results}
    publish("digits-demo", recorded, f"{table}\n\nyolov5n, 192 px, two ranks over Gloo. {described(facts)}")


def first_epoch_at_goal(table: Path) -> int | None:
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if float(row["metrics/mAP_0.5"] or 0) >= GOAL:
                return int(row["epoch"]) + 1
    return None


if __name__ == "__main__":
    main()
