"""Digits without anchors: yolov8n and yolo11n reach mAP50 0.80 within 12 minutes on two CPU cores.

    python benchmarks/digits.py

Runs ``make demo DEMO_MODEL=...`` as it stands for each, from random weights, set-up done before. Takes up
to 25 minutes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from typing import Any

from common import ROOT, described, machine, parsed, parser, publish, runs
from demo import GOAL, first_epoch_at_goal

MODELS = ("yolov8n", "yolo11n")
LIMIT_S = 12 * 60


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--models", nargs="+", default=list(MODELS))
    args = parsed(p, models=["yolov8n"])
    subprocess.run(["make", "setup"], cwd=ROOT, check=True)
    runs = [run(model, *(["DEMO_EPOCHS=1"] if args.quick else [])) for model in args.models]
    facts = machine()
    note = f"192 px, two ranks over Gloo, AdamW, random initial weights. {described(facts)}"
    table = f"{table_of(runs)}\n\n{note}"
    publish("digits", {"machine": facts, "goal": GOAL, "limit_s": LIMIT_S, "runs": runs}, table)


def run(model: str, *settings: str) -> dict[str, Any]:
    """One ``make demo``: what it wrote, and how long all of it took."""
    folder = runs(f"digits-{model}")
    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    command = ["make", "demo", f"DEMO_MODEL={model}", f"DEMO_RUN={folder.relative_to(ROOT)}", *settings]
    subprocess.run(command, cwd=ROOT, check=True)
    return {
        "model": model,
        "make_demo_s": time.monotonic() - start,
        "reached_in_epoch": first_epoch_at_goal(folder / "results.csv"),
        "results": json.loads((folder / "results.json").read_text()),
    }


def table_of(runs: list[dict[str, Any]]) -> str:
    lines = [
        f"| model | epochs | mAP50 | mAP50-95 | reached {GOAL:.2f} in epoch | images/s | training | "
        f"`make demo` in all | within {LIMIT_S // 60} min |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in runs:
        results, metrics = one["results"], one["results"]["metrics"]
        reached = metrics["mAP50"] >= GOAL and one["make_demo_s"] <= LIMIT_S
        lines.append(
            f"| {one['model']} | {results['epochs']} | {metrics['mAP50']:.3f} | {metrics['mAP50-95']:.3f} | "
            f"{one['reached_in_epoch'] or 'none'} | {results['images_per_s']:.1f} | "
            f"{results['wall_s'] / 60:.1f} min | {one['make_demo_s'] / 60:.1f} min | "
            f"{'yes' if reached else 'no'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
