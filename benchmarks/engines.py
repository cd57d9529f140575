"""Steps on two ranks over Horovod, this project's torch back end and plain DistributedDataParallel, by turns.

    python benchmarks/engines.py [--steps 60] [--turns 3]

Claim: the torch back end is no slower than DistributedDataParallel, and also sums normalisers and losses.
About five minutes on two CPU cores.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from typing import Any

from common import BIN, ROOT, described, machine, parser, publish

RANKS = 2
HOROVODRUN = [BIN / "horovodrun", "-np", RANKS, "-H", f"localhost:{RANKS}"]
TORCHRUN = [BIN / "torchrun", "--standalone", "--no-python", "--nproc-per-node", RANKS]
WAYS = {
    "Horovod over Gloo": ([*HOROVODRUN, "--gloo"], "ours"),
    "Horovod over MPI": ([*HOROVODRUN, "--mpi", "--mpi-args=--oversubscribe --allow-run-as-root"], "ours"),
    "torch over Gloo": (TORCHRUN, "ours"),
    "plain DistributedDataParallel": (TORCHRUN, "ddp"),
}
REFERENCE = "plain DistributedDataParallel"


def images_per_s(launcher: list[Any], how: str, steps: int) -> float:
    """What rank 0 of a job says."""
    command = [*map(str, launcher), sys.executable, "benchmarks/engines_rank.py", how, str(steps)]
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **here}, capture_output=True, text=True, check=False
    )
    found = re.search(r"images/s ([\d.]+)", done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return float(found[1])


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--turns", type=int, default=3)
    args = p.parse_args()
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(args.turns):
        for way, (launcher, how) in WAYS.items():
            rates[way].append(images_per_s(launcher, how, args.steps))
            print(way, rates[way][-1], flush=True)
    facts = machine()
    publish("engines", {"machine": facts, "images_per_s": rates}, table_of(rates, facts))


def table_of(rates: dict[str, list[float]], facts: dict[str, Any]) -> str:
    lines = ["| engine | images/s | least to most | of DDP's |", "|---|---|---|---|"]
    reference = statistics.median(rates[REFERENCE])
    for way, found in rates.items():
        middle = statistics.median(found)
        span = f"{min(found):.1f} to {max(found):.1f}"
        lines.append(f"| {way} | {middle:.1f} | {span} | {middle / reference:.2f} |")
    about = "yolov5n, 160 px, 4 images a rank, two ranks with a thread each, median of the turns."
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
