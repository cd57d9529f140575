"""What slices cost in accuracy: those of 2, 4 and 8 images against ``--sync-bn``, paired by seed.

    python benchmarks/slices_accuracy.py [--only digits|bccd] [--most N] [--table]

Claim: none but the table itself. yolov5n from random weights, a batch of 16 in one process, which computes
what as many ranks as slices compute: digits at 128 px (five seeds) and BCCD at 160 px (three). The last epoch
counts. A thread, one training at a time: about 5 minutes each, 20 for digits and 12 for BCCD.
Each training that has ended is in benchmarks/results, and in the table, at once. Start the script again to
go on, also from a checkout elsewhere that has this file: what is in it is not trained again, and what was
broken off here is resumed. BCCD is at ../shared/data/bccd.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import ROOT, described, earlier, interval, machine, paired, parsed, parser, publish, runs, train

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
Found = dict[str, Any]


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
    Task("bccd", "--img 160", epochs=60, seeds=3),
)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--only", choices=[task.name for task in TASKS])
    p.add_argument("--bccd", type=Path, default=ROOT.parent / "shared" / "data" / "bccd" / "data.yaml")
    p.add_argument("--folder", type=Path, help="keeps what is done")
    p.add_argument("--most", type=int, default=1000, help="so many trainings, and no more for now")
    p.add_argument("--table", action="store_true", help="train nothing: publish what is there")
    args = parsed(p, only="digits")
    args.folder = (args.folder or runs("slices-accuracy")).resolve()
    tasks = [replace(task, epochs=1, seeds=1) for task in TASKS[:1]] if args.quick else TASKS
    found = kept(tasks)
    if not args.table:
        for task in tasks:
            if args.only in (None, task.name):
                carry_out(task, args, found)
    tell(found)


def kept(tasks: Sequence[Task]) -> Found:
    """What is in benchmarks/results of these tasks: a row for each way, with trainings that have ended."""
    before = {"machines": [], "rows": [], **earlier("slices-accuracy")}
    ended = {(row["data"], row["epochs"], row["way"]): row["mAP50-95"] for row in before["rows"]}
    rows = [
        {
            "data": task.name,
            "epochs": task.epochs,
            "way": way,
            "mAP50-95": ended.get((task.name, task.epochs, way), {}),
        }
        for task in tasks
        for way in WAYS
    ]
    return {"machines": before["machines"], "rows": rows}


def tell(found: Found) -> None:
    """Write the file and the table."""
    publish("slices-accuracy", found, table_of(found["rows"], found["machines"]))


def carry_out(task: Task, args: argparse.Namespace, found: Found) -> None:
    """Train what has not ended, all ways of a seed before the next seed."""
    data = args.bccd
    if task.name == "digits":
        data = args.folder / "data" / "digits" / "data.yaml"
        if not data.exists():
            data.parent.parent.mkdir(parents=True, exist_ok=True)
            make_digits(data.parent)
    rows = [row for row in found["rows"] if row["data"] == task.name]
    for seed in range(task.seeds):
        for row in rows:
            if str(seed) in row["mAP50-95"] or not args.most:
                continue
            args.most -= 1
            run = task.folder(args.folder, row["way"], seed)
            if not (run / "results.json").exists():
                words = f"{SHARED} {task.flags} --epochs {task.epochs} --seed {seed} {WAYS[row['way']]}"
                place = ["--data", str(data.resolve()), "--project", str(run.parent), "--name", run.name]
                train([*words.split(), *place], 1, run.with_suffix(".log"), OMP_NUM_THREADS="1")
            results = json.loads((run / "results.json").read_text())
            row["mAP50-95"][str(seed)] = results["metrics"]["mAP50-95"]
            if (facts := machine()) not in found["machines"]:
                found["machines"].append(facts)
            tell(found)


def table_of(rows: list[Found], machines: list[Found]) -> str:
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
        "hyperparameters, BCCD at 160 px with the defaults; last epoch; intervals by the t distribution."
    )
    return "\n".join([*lines, "", " ".join([about, *map(described, machines)])])


if __name__ == "__main__":
    main()
