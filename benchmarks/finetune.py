"""Fine-tuning beats training from scratch: 10 epochs on blood cells from weights of digits, and from none.

    python benchmarks/finetune.py

Claim: mAP50 is higher by 0.03 with each of three seeds where a run begins with weights that were trained on
the built-in digits. The runs differ in ``--weights`` alone. Hardware: two CPU cores take about 20 minutes.
Needs the data set of blood cells at ../shared/data/bccd, or --data.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, described, machine, parsed, parser, publish, train

from horovod_yolo.data.digits import make_digits
from horovod_yolo.families import zoo

GOAL = 0.03
WAYS = ("from scratch", "fine-tuned")
# As for the digits: few images, so a step every 16 of them, and a short warm-up.
HYP = "nbs: 16\nlr0: 0.002\nlrf: 0.02\nmomentum: 0.9\nwarmup_epochs: 1\nwarmup_bias_lr: 0.01\n"
COMMON = "--batch-size 16 --optimizer AdamW --cos-lr --workers 0 --cache ram --device cpu --noplots"
PAGE = ROOT / "docs" / "transfer_learning.md"


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "bccd" / "data.yaml")
    p.add_argument("--model", default="yolov5n")
    p.add_argument("--imgsz", type=int, default=224, help="of the blood cells; digits have 192")
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--digits-epochs", type=int, default=24)
    p.add_argument("--digits-images", type=int, default=600)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--ranks", type=int, default=2)
    args = parsed(p, epochs=1, digits_epochs=1, digits_images=100, seeds=[0])
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = digits_weights(folder, args)
        (folder / "hyp.yaml").write_text(HYP)
        runs = [one_run(folder, way, seed, weights, args) for seed in args.seeds for way in WAYS]
        digits = json.loads((folder / "digits-run" / "results.json").read_text())
    facts = machine()
    found = {
        "machine": facts,
        "model": args.model,
        "digits": {"epochs": digits["epochs"], "mAP50": digits["metrics"]["mAP50"]},
        "imgsz": args.imgsz,
        "hyp": HYP,
        "runs": runs,
        "wall_s": time.monotonic() - begun,
    }
    publish("finetune", found, table_of(found, args), PAGE)


def digits_weights(folder: Path, args: argparse.Namespace) -> Path:
    """Train on digits as ``make demo`` does; the best weights."""
    make_digits(folder / "digits", images=args.digits_images)
    hyp = ROOT / "horovod_yolo" / "config" / f"hyp.digits.{zoo.family_of(args.model).name}.yaml"
    flags = f"--cfg {args.model} --imgsz 192 --epochs {args.digits_epochs} --name digits-run {COMMON}"
    place = ["--data", str(folder / "digits" / "data.yaml"), "--hyp", str(hyp), "--project", str(folder)]
    train([*flags.split(), *place], args.ranks, folder / "digits.log")
    return folder / "digits-run" / "weights" / "best.pt"


def one_run(folder: Path, way: str, seed: int, weights: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run on blood cells, and its mAP50 after each epoch."""
    name = f"{way.replace(' ', '-')}-{seed}"
    flags = f"--imgsz {args.imgsz} --epochs {args.epochs} --seed {seed} --name {name} {COMMON}"
    start = ["--weights", str(weights)] if way == "fine-tuned" else ["--cfg", args.model]
    place = ["--data", str(args.data), "--hyp", str(folder / "hyp.yaml"), "--project", str(folder)]
    train([*flags.split(), *start, *place], args.ranks, folder / f"{name}.log")
    results = json.loads((folder / name / "results.json").read_text())
    with (folder / name / "results.csv").open(newline="") as file:
        curve = [float(row["metrics/mAP_0.5"]) for row in csv.DictReader(file)]
    return {"way": way, "seed": seed, "mAP50": curve, "wall_s": results["wall_s"]}


def table_of(found: dict[str, Any], args: argparse.Namespace) -> str:
    """mAP50 after the last epoch of each run, the means with their spread, and the means' way there."""
    curves = {way: [run["mAP50"] for run in found["runs"] if run["way"] == way] for way in WAYS}
    lines = [
        "| mAP50 after the last epoch | "
        + " | ".join(f"seed {seed}" for seed in args.seeds)
        + " | mean ± sd |",
        "|---" * (len(args.seeds) + 2) + "|",
    ]
    for way in WAYS:
        last = [curve[-1] for curve in curves[way]]
        spread = f"{statistics.mean(last):.3f} ± {statistics.stdev(last) if len(last) > 1 else 0:.3f}"
        lines.append(f"| {way} | " + " | ".join(f"{value:.3f}" for value in last) + f" | {spread} |")
    means = {way: [statistics.mean(epoch) for epoch in zip(*curves[way], strict=True)] for way in WAYS}
    epochs = range(1, len(means[WAYS[0]]) + 1)
    lines += [
        "",
        "| mean after epoch | " + " | ".join(map(str, epochs)) + " |",
        "|---" * (len(epochs) + 1) + "|",
    ]
    lines += [f"| {way} | " + " | ".join(f"{value:.3f}" for value in means[way]) + " |" for way in WAYS]
    tuned, scratch = ([curve[-1] for curve in curves[way]] for way in ("fine-tuned", "from scratch"))
    gains = [after - before for after, before in zip(tuned, scratch, strict=True)]
    digits = f"{found['digits']['epochs']} epochs on digits (mAP50 {found['digits']['mAP50']:.3f})"
    verdict = f"the goal of {GOAL} for each seed is {'reached' if min(gains) >= GOAL else 'NOT reached'}"
    note = (
        f"{found['model']}, {args.imgsz} px, batch 16, {args.epochs} epochs, {args.ranks} ranks, AdamW. The "
        f"weights come from {digits}. Fine-tuned minus from scratch: {statistics.mean(gains):+.3f}, of the "
        f"seed with the least {min(gains):+.3f}; {verdict}. {described(found['machine'])}"
    )
    return "\n".join(lines) + f"\n\n{note}\n"


if __name__ == "__main__":
    main()
