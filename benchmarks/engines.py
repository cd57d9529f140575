"""Steps on two ranks over Horovod, this project's torch back end and plain DistributedDataParallel, by turns.

    python benchmarks/engines.py [--steps 60] [--turns 3] [--only host|links]

Claim: the torch back end is no slower than DistributedDataParallel, and also sums normalisers and losses. On
one host, and on two test hosts whose link has a rate and a delay one way (needs root and cc). On two cores
about five minutes for the one, and fifteen for the others.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from typing import Any

from common import BIN, ROOT, described, machine, parser, publish
from shaped import environment, two_hosts

from tests.cluster.hosts import Cluster
from tests.cluster.links import shaped

RANKS = 2
HOROVODRUN = [BIN / "horovodrun", "-np", RANKS, "-H", f"localhost:{RANKS}"]
TORCHRUN = [BIN / "torchrun", "--standalone", "--no-python", "--nproc-per-node", RANKS]
WAYS = {
    "Horovod over Gloo": ([*HOROVODRUN, "--gloo"], "--gloo", "ours"),
    "Horovod over MPI": (
        [*HOROVODRUN, "--mpi", "--mpi-args=--oversubscribe --allow-run-as-root"],
        "--mpi",
        "ours",
    ),
    "torch over Gloo": (TORCHRUN, "--torch", "ours"),
    "plain DistributedDataParallel": (TORCHRUN, "--torch", "ddp"),
}
REFERENCE = "plain DistributedDataParallel"
LINKS = [(200, 0), (100, 2), (50, 10)]  # Mbit/s, ms one way
STEPS_OF_A_LINK = 10
Rates = dict[str, list[float]]


def images_per_s(done: subprocess.CompletedProcess[str]) -> float:
    """What rank 0 of a job says."""
    found = re.search(r"images/s ([\d.]+)", done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"{done.args}: {done.stdout}{done.stderr}")
    return float(found[1])


def on_one_host(launcher: list[Any], how: str, steps: int) -> float:
    command = [*map(str, launcher), sys.executable, "benchmarks/engines_rank.py", how, str(steps)]
    here = {**environment(), "PATH": f"{BIN}:{os.environ['PATH']}"}
    return images_per_s(
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, **here}, capture_output=True, text=True, check=False
        )
    )


def on_two_hosts(cluster: Cluster, flag: str, how: str) -> float:
    """Started as a user would, by one command on host1."""
    hosts = ["--hosts", "host1:1,host2:1", "--interface", "eth0"]
    launch = [sys.executable, "-m", "horovod_yolo.cli", "launch", flag, *hosts, "--"]
    words = [*launch, str(ROOT / "benchmarks/engines_rank.py"), how, str(STEPS_OF_A_LINK)]
    return images_per_s(cluster["host1"].run(words, env=environment(), cwd=ROOT, timeout=300))


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--only", choices=("host", "links"))
    args = p.parse_args()
    if args.only in (None, "host"):
        compare_on_one_host(args.steps, args.turns)
    if args.only in (None, "links"):
        compare_over_links(args.turns)


def compare_on_one_host(steps: int, turns: int) -> None:
    rates: Rates = {way: [] for way in WAYS}
    for _ in range(turns):
        for way, (launcher, _, how) in WAYS.items():
            rates[way].append(on_one_host(launcher, how, steps))
            print(way, rates[way][-1], flush=True)
    facts = machine()
    publish("engines", {"machine": facts, "images_per_s": rates}, table_of(rates, facts))


def compare_over_links(turns: int) -> None:
    rates: dict[str, Rates] = {
        f"{rate} Mbit/s, {delay} ms": {way: [] for way in WAYS} for rate, delay in LINKS
    }
    with two_hosts() as cluster:
        for _ in range(turns):
            for (rate, delay), of_link in zip(LINKS, rates.values(), strict=True):
                with shaped(cluster, cluster["host2"], rate * 1e6, delay * 1e-3):
                    for way, (_, flag, how) in WAYS.items():
                        of_link[way].append(on_two_hosts(cluster, flag, how))
                        print(rate, delay, way, of_link[way][-1], flush=True)
    facts = machine()
    publish("engines-links", {"machine": facts, "images_per_s": rates}, links_table(rates, facts))


def table_of(rates: Rates, facts: dict[str, Any]) -> str:
    lines = ["| engine | images/s | least to most | of DDP's |", "|---|---|---|---|"]
    reference = statistics.median(rates[REFERENCE])
    for way, found in rates.items():
        middle = statistics.median(found)
        span = f"{min(found):.1f} to {max(found):.1f}"
        lines.append(f"| {way} | {middle:.1f} | {span} | {middle / reference:.2f} |")
    about = "yolov5n, 160 px, 4 images a rank, two ranks with a thread each, median of the turns."
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


def links_table(rates: dict[str, Rates], facts: dict[str, Any]) -> str:
    lines = ["| engine | " + " | ".join(rates) + " |", "|---|" + "---|" * len(rates)]
    for way in WAYS:
        cells = []
        for of_link in rates.values():
            middle = statistics.median(of_link[way])
            cells.append(f"{middle:.2f} ({middle / statistics.median(of_link[REFERENCE]):.2f})")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    about = (
        "images/s, in brackets of DDP's; yolov5n, 160 px, 4 images a rank, a rank on each of two test hosts, "
        "a rate in each direction and a delay one way; medians of the turns."
    )
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
