"""BCCD blood cells, yolov5n from random weights: AP by pycocotools, by ranks, and before and after issue 16.

    PYTHONPATH=. python benchmarks/quality.py [--before CHECKOUT] [--minutes N]

Claim: what was done for speed cost no accuracy. 320 px, batch 16, 60 epochs, three seeds; the same with 2 and
4 ranks; and, with ``--before``, another checkout (that of commit db6e438 is from before issue 16), paired by
seed. The last epoch counts. A thread a rank, one training at a time. On two CPU cores 12 trainings of 10 to
20 minutes each. Each is in the table as soon as it ends, and is not done again; one that was broken off is
resumed from runs/quality: start the script again. The table names what has not been run. Needs the data
set at ../shared/data/bccd, or --data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    described,
    earlier,
    environment,
    horovodrun,
    interval,
    machine,
    paired,
    parsed,
    parser,
    publish,
    runs,
    spread,
)

from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from tests.unit.metrics.references import pycocotools_evaluation

NUMBERS = ("AP50", "AP")
RANKS = (1, 2, 4)
COMMAND = """
import sys
from horovod_yolo.assembly.ending import leave
from horovod_yolo.cli import {0}_main
leave({0}_main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Training:
    """One line of the plan."""

    version: str  # "after" or "before"
    ranks: int
    seed: int

    @property
    def name(self) -> str:
        """Of its run folder and of its JSON."""
        return f"{self.version}-{self.ranks}-{self.seed}"


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "bccd" / "data.yaml")
    p.add_argument("--before", type=Path, help="another checkout to compare with")
    p.add_argument("--epochs", type=int, default=60)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    p.add_argument("--minutes", type=float, default=float("inf"), help="after which no training is begun")
    p.add_argument("--folder", type=Path, help="keeps what is broken off")
    args = parsed(p, epochs=1, seeds=[0], ranks=[1])
    args.folder = args.folder or runs("quality")
    args.folder.mkdir(parents=True, exist_ok=True)
    plan, last_start = planned(args), time.monotonic() + 60 * args.minutes
    published = earlier("quality")
    ended = published["runs"] if published.get("epochs") == args.epochs else []
    for training in plan:
        if training.name not in names(ended) and time.monotonic() < last_start:
            ended.append(carry_out(training, args))
            missing = [one.name for one in plan if one.name not in names(ended)]
            found = {"machine": machine(), "epochs": args.epochs, "runs": ended, "missing": missing}
            publish("quality", found, table_of(found))


def planned(args: argparse.Namespace) -> list[Training]:
    """The pairs first, then the other numbers of ranks seed by seed."""
    versions = ("after", "before") if args.before else ("after",)
    pairs = [Training(version, 1, seed) for seed in args.seeds for version in versions if 1 in args.ranks]
    return pairs + [Training("after", n, seed) for n in args.ranks if n != 1 for seed in args.seeds]


def names(ended: list[dict[str, Any]]) -> set[str]:
    return {Training(run["version"], run["ranks"], run["seed"]).name for run in ended}


def carry_out(training: Training, args: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on with what was broken off, and validate."""
    checkout = args.before.resolve() if training.version == "before" else ROOT
    name = f"{training.name}-{args.epochs}"
    run = args.folder.resolve() / name
    flags = (
        f"--cfg yolov5n --img 320 --batch 16 --epochs {args.epochs} --seed {training.seed} --workers 0 "
        f"--cache ram --device cpu --noval --noplots --name {name} --exist-ok"
    )
    place = ["--data", str(args.data.resolve()), "--project", str(args.folder.resolve())]
    weights = run / "weights" / "last.pt"
    finished = run / "results.json"
    if not finished.exists():
        resumed = ["--resume", str(run)]
        called(checkout, "train", resumed if weights.exists() else [*flags.split(), *place], training.ranks)
    detections = run / "detections.json"
    words = ["--weights", str(weights), "--data", str(args.data.resolve()), "--save-json", str(detections)]
    called(checkout, "val", [*words, "--img", "320", "--workers", "0", "--device", "cpu"], 1)
    ended = json.loads(finished.read_text())
    return {
        "version": training.version,
        "commit": commit_of(checkout),
        "ranks": training.ranks,
        "seed": training.seed,
        **coco_numbers(args.data, detections),
        "images_per_s": ended["images_per_s"],
        "wall_s": ended["wall_s"],
    }


def called(checkout: Path, command: str, flags: list[str], ranks: int) -> None:
    """Run a command of a checkout with its own package, on one thread a rank; raise where it fails."""
    words = [*horovodrun(ranks), sys.executable, "-c", COMMAND.format(command), *flags]
    print("$", f"{checkout}:", command, *flags, f"({ranks} ranks)", flush=True)
    subprocess.run(words, cwd=checkout, env=environment(checkout), check=True)


def commit_of(checkout: Path) -> str:
    words = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def coco_numbers(data: Path, detections: Path) -> dict[str, float]:
    """What pycocotools says of the detections, at most 100 an image as it is used for COCO."""
    spec = load_data_yaml(data)
    records = shared_annotations(spec, "val", LocalCommunicator(), None).records
    objects = [
        {"image_id": r.image_id, "category_id": int(c), "bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(a)}
        for r in records
        for c, (x1, y1, x2, y2), a in zip(r.classes, r.boxes_xyxy.tolist(), r.areas, strict=True)
    ]
    truth = {
        "info": {},
        "images": [{"id": r.image_id} for r in records],
        "categories": [{"id": c} for c in range(spec.num_classes)],
        "annotations": [{"id": i, "iscrowd": 0, **row} for i, row in enumerate(objects, 1)],
    }
    evaluation = pycocotools_evaluation(truth, json.loads(detections.read_text()))
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1])}


def table_of(found: dict[str, Any]) -> str:
    ended, seeds = found["runs"], sorted({run["seed"] for run in found["runs"]})
    cells = {(run["version"], run["ranks"], run["seed"]): run for run in ended}
    heads = " | ".join(f"seed {seed}: AP50 / AP" for seed in seeds)
    lines = [f"| ranks | | {heads} | AP50, mean ± sd | AP, mean ± sd |", "|---" * (len(seeds) + 4) + "|"]
    for version, ranks in dict.fromkeys((run["version"], run["ranks"]) for run in ended):
        row = [cells.get((version, ranks, seed)) for seed in seeds]
        each = [f"{run['AP50']:.3f} / {run['AP']:.3f}" if run else "not run" for run in row]
        means = [spread([run[key] for run in row if run]) for key in NUMBERS]
        lines.append(f"| {ranks} | {version} | " + " | ".join([*each, *means]) + " |")
    pairs = [(cells.get(("after", 1, s)), cells.get(("before", 1, s))) for s in seeds]
    gains = [after["AP"] - before["AP"] for after, before in pairs if after and before]
    missing = f" Not run: {', '.join(found['missing'])} (version, ranks, seed)." if found["missing"] else ""
    note = (
        f"yolov5n, {found['epochs']} epochs, last weights, pycocotools.{difference(gains)}{missing} "
        f"{described(found['machine'])}"
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def difference(gains: list[float]) -> str:
    """The paired difference of mAP50-95 with its 95 % interval by the t distribution."""
    if len(gains) < 2:
        return ""
    mean, half = paired(gains)
    return (
        f" After minus before, AP, {len(gains)} pairs: {mean:+.3f}, {interval(mean, half)} "
        f"(so few pairs make it wide: it would not show a small loss)."
    )


if __name__ == "__main__":
    main()
