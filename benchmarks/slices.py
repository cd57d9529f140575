"""What slices with exact sums cost: steps against sums of floats, and against a single pass, by turns.

    python benchmarks/slices.py [MODEL ...] [--only sums|slices] [--turns 5] [--before CHECKOUT]

Claim: a slice for each of two ranks costs up to 1.05 of the step without slices, over Horovod's Gloo and over
MPI, at 4 bytes a gradient on the wire and some small sums; and one process with four slices up to 1.15 of the
same images in one pass. With ``--before`` also against another checkout (commit 6a862da is from before
slices), whose steps are made in jobs of their own. On two cores about five minutes a model; with models
or ``--only`` all other rows stay as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ROOT, described, earlier, machine, parsed, parser, publish
from engines import images_per_s, json_of, launched
from shaped import environment
from slices_rank import BARE, PARTS, SENT

CLAIMS = {"sums": 1.05, "slices": 1.15}
STEPS = 4  # of each turn
MODELS = ("yolov5n", "yolov8n", "yolo26n")
SIDE, IMAGES, IMAGES_ALONE = 320, 8, 16
RANKS = 2
ENGINES = ("Horovod over Gloo", "Horovod over MPI")
Row = dict[str, Any]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("models", nargs="*", metavar="MODEL", help=f"of: {', '.join(MODELS)}")
    p.add_argument("--only", choices=tuple(CLAIMS))
    p.add_argument("--turns", type=int, default=5)
    p.add_argument("--before", type=Path, help="another checkout to compare with")
    args = parsed(p, turns=1, models=MODELS[:1])
    if unknown := set(args.models) - set(MODELS):
        p.error(f"no rows for {', '.join(sorted(unknown))}; of: {', '.join(MODELS)}")
    wanted = [(cfg, how) for cfg in args.models or MODELS for how in CLAIMS if args.only in (None, how)]
    rows = rows_of_others(wanted)
    for cfg, how in wanted:
        rows += (two_ranks if how == "sums" else one_process)(cfg, args)
    rows.sort(key=lambda row: (MODELS.index(model_of(row)), row["how"] != "sums"))
    facts = machine()
    found = {"machine": facts, "turns": args.turns, "before": commit_of(args.before), "rows": rows}
    publish("slices", found, table_of(rows, args.turns, facts))


def rows_of_others(wanted: Sequence[tuple[str, str]]) -> list[Row]:
    """What was measured before, and is not to be measured now."""
    rows: list[Row] = earlier("slices").get("rows", [])
    return [row for row in rows if (model_of(row), row["how"]) not in wanted]


def model_of(row: Row) -> str:
    """Which model a row is of."""
    name: str = row["case"].split(",")[0]
    return name


def two_ranks(cfg: str, args: argparse.Namespace) -> list[Row]:
    """Sums of floats and of integers, over each engine."""
    rows = []
    for engine in ENGINES:
        words = [*size_of(cfg, IMAGES, STEPS), "--turns", args.turns]
        said = launched(engine, ["benchmarks/slices_rank.py", "sums", *words], RANKS)
        rows.append({"how": "sums", "case": f"{cfg}, {RANKS} ranks, {engine}", **json.loads(json_of(said))})
        if args.before:
            rows.append(against_before(args.before.resolve(), cfg, engine, args.turns))
    return rows


def one_process(cfg: str, args: argparse.Namespace) -> list[Row]:
    """One pass, slices, and bare passes, in a process that no launcher starts."""
    words = [*size_of(cfg, IMAGES_ALONE, STEPS), "--turns", args.turns]
    command = [sys.executable, "benchmarks/slices_rank.py", "slices", *map(str, words)]
    here = {**os.environ, **environment()}
    done = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, check=True)
    return [{"how": "slices", "case": f"{cfg}, one process", **json.loads(json_of(done.stdout))}]


def size_of(cfg: str, images: int, steps: int) -> list[Any]:
    """Words for a rank: the steps of a turn, and what is in one."""
    return [steps, "--cfg", cfg, "--img", SIDE, "--images", images]


def against_before(checkout: Path, cfg: str, engine: str, turns: int) -> Row:
    """Jobs of both checkouts by turns: the step of before, and that of now with a slice a rank."""
    size = size_of(cfg, IMAGES, STEPS * 2)
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


def table_of(rows: list[Row], turns: int, facts: dict[str, Any]) -> str:
    lines = [
        "| case | usual, images/s | slices, images/s | time of a step, slices / usual | of the turns | "
        "claimed | bare passes / usual | bytes a gradient |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        (usual, having, *_), (first, second, *_) = row["images_per_s"].values(), row["images_per_s"]
        ratios = ratios_of(usual, having)
        rates = f"{first}: {statistics.median(usual):.1f} | {second}: {statistics.median(having):.1f}"
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        sent = f"{row['bytes_a_value']:.2f}" if row.get("bytes_a_value") else ""
        bare = row["images_per_s"].get(BARE)
        least = f"{statistics.median(ratios_of(usual, bare)):.2f}" if bare else ""
        cells = f"{statistics.median(ratios):.2f} | {span} | {CLAIMS[row['how']]:.2f} | {least} | {sent}"
        lines.append(f"| {row['case']} | {rates} | {cells} |")
        if SENT in row["images_per_s"]:
            lines.append(line_of_sent(row))
    about = (
        f"{IMAGES} images of {SIDE} px a rank, {IMAGES_ALONE} alone, a thread each; medians of {turns} "
        f"turns of {STEPS} steps each way. Bare passes: {PARTS} passes of a part of the batch through model "
        "and loss, and a plain step. Sent: through the engine, as between hosts; ranks of one host add up in "
        "memory that they share. Bytes: what a rank gives to sums over links in a step, for each gradient."
    )
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


def line_of_sent(row: Row) -> str:
    """The same with sums that go through the engine."""
    usual, sent = row["images_per_s"]["float"], row["images_per_s"][SENT]
    ratios = ratios_of(usual, sent)
    return (
        f"| {row['case']} | float: {statistics.median(usual):.1f} | {SENT}: {statistics.median(sent):.1f} "
        f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} "
        f"| {CLAIMS['sums']:.2f} |  |  |"
    )


def ratios_of(usual: list[float], other: list[float]) -> list[float]:
    """Of the times of a step, by turn."""
    return [a / b for a, b in zip(usual, other, strict=True)]


if __name__ == "__main__":
    main()
