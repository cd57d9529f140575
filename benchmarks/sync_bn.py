"""What synchronised batch norm costs: the same steps without and with it, by turns, in the same ranks.

    python benchmarks/sync_bn.py [--turns 5]

Claim: with ``--sync-bn`` two ranks train at 0.6 of the speed without it (yolov5n) and at 0.8 (yolov8n), over
Horovod's Gloo, over MPI and over torch. Eight ranks on too few cores are reported, too. On two cores about
ten minutes.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

from common import described, machine, parsed, parser, publish
from engines import WAYS, job_here, json_of

STEPS = 4  # of each turn


@dataclass(frozen=True)
class Case:
    """A model on some ranks."""

    cfg: str
    ranks: int
    side: int  # of an image, pixels
    images: int  # of a rank

    def __str__(self) -> str:
        return f"{self.cfg}, {self.ranks} ranks, {self.images} x {self.side} px each"


CASES = (Case("yolov5n", 2, 320, 8), Case("yolov8n", 2, 320, 8), Case("yolov5n", 8, 160, 2))


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--turns", type=int, default=5)
    args = parsed(p, turns=1)
    engines = [way for way, (*_, how) in WAYS.items() if how == "ours"]
    rows = []
    for case in CASES[:1] if args.quick else CASES:
        for way in engines:
            words = ["sync-bn", STEPS, "--cfg", case.cfg, "--img", case.side, "--images", case.images]
            said = job_here(way, [*words, "--turns", args.turns], case.ranks)
            rates: dict[str, list[float]] = json.loads(json_of(said))
            rows.append({"case": str(case), "engine": way, "images_per_s": rates})
            print(case, way, rates, flush=True)
    facts = machine()
    publish(
        "sync-bn", {"machine": facts, "turns": args.turns, "rows": rows}, table_of(rows, args.turns, facts)
    )


def table_of(rows: list[dict[str, Any]], turns: int, facts: dict[str, Any]) -> str:
    lines = [
        "| ranks | engine | without | with | with / without | of the turns |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        without, having = row["images_per_s"]["without"], row["images_per_s"]["with"]
        ratios = [b / a for a, b in zip(without, having, strict=True)]
        rates = f"{statistics.median(without):.1f} | {statistics.median(having):.1f}"
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(
            f"| {row['case']} | {row['engine']} | {rates} | {statistics.median(ratios):.2f} | {span} |"
        )
    about = f"images/s of all ranks, a thread each; medians of {turns} turns of {STEPS} steps each way."
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
