"""What slices cost in accuracy: those of 2, 4 and 8 images against ``--sync-bn``, paired by seed.

    python benchmarks/slices_accuracy.py [--only digits|bccd] [--table]

Claim: none but the table itself. yolov5n from random weights, a batch of 16 in one process, which computes
what as many ranks as slices compute: digits at 128 px (five seeds) and BCCD at 320 px (three). The last epoch
counts. A thread, one training at a time: about 4 minutes each for digits and 20 for BCCD, 20 and 12 of them.
Start the script again to go on: what has ended is kept, and what was broken off is resumed. BCCD is at
../shared/data/bccd.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import ROOT, described, interval, machine, paired, parsed, parser, publish, runs, train

from horovod_yolo.data.digits import make_digits

BATCH = 16
REFERENCE = "--sync-bn"
WAYS = {
    REFERENCE: "--sync-bn",
    "slices of 8": f"--slices {BATCH // 8}",
    "slices of 4": f"--slices {BATCH // 4}",
    "slices of 2": f"--slices {BATCH // 2}",
}
SHARED = f"--cfg yolov5n --batch {BATCH} --workers 0 --cache ram --device cpu --noval --noplots --resume auto"
LEAST = -0.01  # a difference whose interval reaches below this is said


@dataclass(frozen=True)
class Task:
    """A data set with what it is trained with."""

    name: str
    flags: str
    epochs: int
    seeds: int

    def folder(self, root: Path, way: str, seed: int) -> Path:
        """Of the run. Those of another length are others."""
        return root / f"{self.name}-{self.epochs}" / f"{way.strip('-').replace(' ', '-')}-{seed}"


TASKS = (
    Task(
        "digits",
        "--img 128 --optimizer AdamW --cos-lr --hyp horovod_yolo/config/hyp.digits.anchor_based.yaml",
        epochs=24,
        seeds=5,
    ),
    Task("bccd", "--img 320", epochs=60, seeds=3),
)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--only", choices=[task.name for task in TASKS])
    p.add_argument("--bccd", type=Path, default=ROOT.parent / "shared" / "data" / "bccd" / "data.yaml")
    p.add_argument("--folder", type=Path, help="keeps what is done")
    p.add_argument("--table", action="store_true", help="train nothing: publish what is there")
    args = parsed(p, only="digits")
    args.folder = args.folder or runs("slices-accuracy")
    tasks = [replace(task, epochs=1, seeds=1) for task in TASKS[:1]] if args.quick else TASKS
    if not args.table:
        for task in tasks:
            if args.only in (None, task.name):
                carry_out(task, args)
    rows = [row for task in tasks for row in rows_of(task, args.folder)]
    facts = machine()
    publish("slices-accuracy", {"machine": facts, "rows": rows}, table_of(rows, facts))


def carry_out(task: Task, args: argparse.Namespace) -> None:
    """Train what has not ended, all ways of a seed before the next seed."""
    data = args.bccd
    if task.name == "digits":
        data = args.folder / "data" / "digits" / "data.yaml"
        if not data.exists():
            data.parent.parent.mkdir(parents=True, exist_ok=True)
            make_digits(data.parent)
    for seed in range(task.seeds):
        for way, flags in WAYS.items():
            run = task.folder(args.folder.resolve(), way, seed)
            if not (run / "results.json").exists():
                words = f"{SHARED} {task.flags} --epochs {task.epochs} --seed {seed} {flags}"
                place = ["--data", str(data.resolve()), "--project", str(run.parent), "--name", run.name]
                train([*words.split(), *place], 1, run.with_suffix(".log"), OMP_NUM_THREADS="1")


def rows_of(task: Task, root: Path) -> list[dict[str, Any]]:
    """A row for each way of a task: mAP50-95 by seed, of the trainings that have ended."""
    rows = []
    for way in WAYS:
        ended = {}
        for seed in range(task.seeds):
            results = task.folder(root, way, seed) / "results.json"
            if results.exists():
                ended[seed] = json.loads(results.read_text())["metrics"]["mAP50-95"]
        rows.append({"data": task.name, "epochs": task.epochs, "way": way, "mAP50-95": ended})
    return rows


def table_of(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    references = {row["data"]: row["mAP50-95"] for row in rows if row["way"] == REFERENCE}
    lines = [
        "| data | batch norm over | mAP50-95, mean (seeds) | against `--sync-bn`, paired | pairs | "
        f"below {LEAST} at the lower end |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        found, reference = row["mAP50-95"], references[row["data"]]
        mean = f"{statistics.mean(found.values()):.3f} ({len(found)})" if found else "not run"
        gains = [found[seed] - reference[seed] for seed in found if seed in reference]
        cells = "| | "
        if row["way"] != REFERENCE:
            centre, half = paired(gains)
            low = centre - half
            said = f"{centre:+.3f}, {interval(centre, half)}" if len(gains) > 1 else ""
            cells = f"{said} | {len(gains)} | {('yes' if low < LEAST else 'no') if said else ''}"
        lines.append(f"| {row['data']}, {row['epochs']} epochs | {row['way']} | {mean} | {cells} |")
    about = (
        f"yolov5n from random weights, batch {BATCH}, one process; digits at 128 px with the demo's "
        "hyperparameters, BCCD at 320 px with the defaults; last epoch; intervals by the t distribution."
    )
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
