"""What slices with exact sums cost: steps against sums of floats, and against a single pass, by turns.

    python benchmarks/slices.py [--turns 5] [--before CHECKOUT]

Claim: a slice for each of two ranks costs up to 1.05 of the step without slices, over Horovod's Gloo and over
MPI, at 4 bytes a gradient on the wire and some small sums; and one process with four slices up to 1.15 of the
same images in one pass. With ``--before`` also against another checkout (commit 6a862da is from before
slices), whose steps are made in jobs of their own. On two cores about a quarter of an hour.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, described, machine, parsed, parser, publish
from engines import images_per_s, json_of, launched
from shaped import environment

CLAIMS = {"sums": 1.05, "slices": 1.15}
STEPS = 4  # of each turn
MODELS = ("yolov5n", "yolov8n")
SIDE, IMAGES, IMAGES_ALONE = 320, 8, 16
RANKS = 2
ENGINES = ("Horovod over Gloo", "Horovod over MPI")


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--turns", type=int, default=5)
    p.add_argument("--before", type=Path, help="another checkout to compare with")
    args = parsed(p, turns=1)
    rows = []
    for cfg in MODELS[:1] if args.quick else MODELS:
        words = [STEPS, "--cfg", cfg, "--img", SIDE, "--images", IMAGES, "--turns", args.turns]
        for engine in ENGINES:
            said = launched(engine, ["benchmarks/slices_rank.py", "sums", *words], RANKS)
            rows.append(
                {"how": "sums", "case": f"{cfg}, {RANKS} ranks, {engine}", **json.loads(json_of(said))}
            )
            if args.before:
                rows.append(against_before(args.before.resolve(), cfg, engine, args.turns))
        words[words.index("--images") + 1] = IMAGES_ALONE
        rows.append({"how": "slices", "case": f"{cfg}, one process", **alone(words)})
    facts = machine()
    found = {"machine": facts, "turns": args.turns, "before": commit_of(args.before), "rows": rows}
    publish("slices", found, table_of(rows, args.turns, facts))


def alone(words: list[Any]) -> dict[str, Any]:
    """One process, which no launcher starts."""
    command = [sys.executable, "benchmarks/slices_rank.py", "slices", *map(str, words)]
    here = {**os.environ, **environment()}
    done = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(json_of(done.stdout))
    return found


def against_before(checkout: Path, cfg: str, engine: str, turns: int) -> dict[str, Any]:
    """Jobs of both checkouts by turns: the step of before, and that of now with a slice a rank."""
    size = [STEPS * 2, "--cfg", cfg, "--img", SIDE, "--images", IMAGES]
    rates: dict[str, list[float]] = {"before": [], "exact": []}
    for _ in range(turns):
        program = [checkout / "benchmarks" / "engines_rank.py", "ours", *size]
        rates["before"].append(images_per_s(launched(engine, program, RANKS, PYTHONPATH=str(checkout))))
        program = ["benchmarks/slices_rank.py", "sums", *size, "--turns", 1]
        both = json.loads(json_of(launched(engine, program, RANKS)))["images_per_s"]
        rates["exact"] += both["exact"]
    return {"how": "sums", "case": f"{cfg}, {RANKS} ranks, {engine}, against before", "images_per_s": rates}


def commit_of(checkout: Path | None) -> str:
    if checkout is None:
        return ""
    words = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def table_of(rows: list[dict[str, Any]], turns: int, facts: dict[str, Any]) -> str:
    lines = [
        "| case | usual, images/s | slices, images/s | time of a step, slices / usual | of the turns | "
        "claimed | bytes a gradient |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        (usual, having), (first, second) = row["images_per_s"].values(), row["images_per_s"]
        ratios = [a / b for a, b in zip(usual, having, strict=True)]
        rates = f"{first}: {statistics.median(usual):.1f} | {second}: {statistics.median(having):.1f}"
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        sent = f"{row['bytes_a_value']:.2f}" if row.get("bytes_a_value") else ""
        cells = f"{statistics.median(ratios):.2f} | {span} | {CLAIMS[row['how']]:.2f} | {sent}"
        lines.append(f"| {row['case']} | {rates} | {cells} |")
    about = (
        f"{IMAGES} images of {SIDE} px a rank, {IMAGES_ALONE} alone, a thread each; medians of {turns} "
        f"turns of {STEPS} steps each way. Bytes: what a rank gives to sums over links in a step, for each "
        "gradient."
    )
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
