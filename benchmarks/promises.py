"""What each promise costs: slices with exact sums, and synchronised batch norm, against neither.

    PYTHONPATH=. python benchmarks/promises.py

Claim: none but the table itself. Speed and accuracy are those that `slices.py`, `sync_bn.py` and
`slices_accuracy.py` have measured, from benchmarks/results: run these first. Here a process for each way
makes some steps of 16 images of 320 px, in four slices or in one pass; its peak of memory is the kernel's,
less what it had before the first step. What it gives to sums is counted. About two minutes; other work may
share the machine.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, described, environment, machine, paired, parsed, parser, publish
from engines_rank import Work
from slices_rank import EXACT, FLOAT, PARTS, Counting, step_of

from horovod_yolo.families import zoo

DOCUMENT = ROOT / "docs" / "distributed.md"
RESULTS = ROOT / "benchmarks" / "results"
MODELS, SIDE, IMAGES, STEPS = ("yolov5n", "yolov8n"), 320, 16, 3
NEITHER, SLICES, SYNC = "neither", "slices", "sync-bn"
WAYS: dict[str, dict[str, Any]] = {
    NEITHER: {**FLOAT, "slices": 1},
    SLICES: {**EXACT, "slices": PARTS},
    SYNC: {**FLOAT, "sync_bn": True},
}
ENGINE, REFERENCE = "Horovod over Gloo", "--sync-bn"
MB = 1e6
Found = dict[str, Any]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--child", nargs=2, metavar=("CFG", "WAY"), help="measure one way in this process")
    p.add_argument("--steps", type=int, default=STEPS)
    args = parsed(p, steps=1)
    if args.child:
        print(json.dumps(measured(*args.child, args.steps)))
        return
    found = {cfg: {way: in_a_process(cfg, way, args.steps) for way in WAYS} for cfg in MODELS}
    rows = [row for cfg in MODELS for row in rows_of(cfg, found[cfg])] + accuracy(result("slices-accuracy"))
    facts = machine()
    results = {"machine": facts, "measured": found, "rows": rows}
    publish("promises", results, table_of(rows, facts), DOCUMENT)


def in_a_process(cfg: str, way: str, steps: int) -> Found:
    """What `measured` finds in a process that has done nothing else."""
    command = [sys.executable, __file__, "--child", cfg, way, "--steps", str(steps)]
    done = subprocess.run(command, env=environment(ROOT), stdout=subprocess.PIPE, text=True, check=True)
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(cfg: str, way: str, steps: int) -> Found:
    """Peak of memory, and what is given to sums in a step: bytes for each gradient, and how many."""
    comm = Counting()
    step = step_of(Work(cfg, SIDE, IMAGES), comm, WAYS[way])
    before = peak()
    step()  # the first may be made twice: nothing is known of its gradients
    for _ in range(steps):
        comm.bytes = comm.sums = 0
        step()
    gradients = sum(p.numel() for p in zoo.build_model(cfg, 10).parameters())
    return {"MB": (peak() - before) / MB, "bytes": comm.bytes / gradients, "sums": comm.sums}


def peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def result(name: str) -> Found:
    """What another script has found; empty where it has not run."""
    file = Path(RESULTS, f"{name}.json")
    found: Found = json.loads(file.read_text()) if file.exists() else {"rows": []}
    return found


def rows_of(cfg: str, found: dict[str, Found]) -> list[list[str]]:
    """Lines of a model: what, and a cell for each way."""
    slices, sync = times(cfg, "slices", "float", "exact"), times(cfg, "sync-bn", "without", "with")
    alone = times(cfg, "slices", "one pass", f"{PARTS} slices")
    return [
        [f"{cfg}: time of a step of two ranks", "1", slices, sync],
        [f"{cfg}: time of a step of one process, {PARTS} slices", "1", alone, ""],
        [f"{cfg}: memory of a step, MB", *(f"{found[way]['MB']:.0f}" for way in WAYS)],
        [f"{cfg}: bytes on the wire for each gradient", *(f"{found[way]['bytes']:.2f}" for way in WAYS)],
        [f"{cfg}: sums in a step", *(str(found[way]["sums"]) for way in WAYS)],
    ]


def times(cfg: str, name: str, usual: str, having: str) -> str:
    """Median of the turns' ratios of time, of a model and two of its ways."""
    for row in result(name)["rows"]:
        rates, case = row["images_per_s"], f"{row['case']}, {row.get('engine', '')}"
        if case.startswith(f"{cfg}, ") and having in rates and ("one process" in case or ENGINE in case):
            return f"{statistics.median(a / b for a, b in zip(rates[usual], rates[having], strict=True)):.2f}"
    return "not measured"


def accuracy(found: Found) -> list[list[str]]:
    """Lines of mAP50-95, against `--sync-bn` by seed."""
    lines = []
    references = {row["data"]: row["mAP50-95"] for row in found["rows"] if row["way"] == REFERENCE}
    for row in found["rows"]:
        reference = references.get(row["data"], {})
        gains = [value - reference[seed] for seed, value in row["mAP50-95"].items() if seed in reference]
        if row["way"] == REFERENCE or len(gains) < 2:
            continue
        centre, half = paired(gains)
        cell = f"{centre:+.3f} ± {half:.3f} ({len(gains)} seeds)"
        lines.append([f"{row['data']}: mAP50-95 against `--sync-bn`, {row['way']} images", cell, cell, "0"])
    return lines or [["mAP50-95 against `--sync-bn`", *["not measured"] * 2, "0"]]


def table_of(rows: list[list[str]], facts: dict[str, Any]) -> str:
    """As Markdown."""
    head = ["| | neither (`--sums float`) | slices, exact sums | `--sync-bn` |", "|---|---|---|---|"]
    about = (
        f"Time: medians, over {ENGINE}, from the tables in benchmarks.md. Memory: the peak of one process, "
        f"less what it had before its first step, with {IMAGES} images of {SIDE} px in fp32, in {PARTS} "
        "slices or one pass. Bytes: payload that a rank gives to sums over links. ± is half of a 95 % "
        f"interval. {described(facts)}"
    )
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows), "", about])


if __name__ == "__main__":
    main()
