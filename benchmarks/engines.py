"""Steps on two ranks over Horovod, this project's torch back end and plain DistributedDataParallel, by turns.

    python benchmarks/engines.py [--steps 60] [--turns 3] [--only host|links]

Claim: the torch back end is no slower than DistributedDataParallel, and also sums normalisers and losses. On
one host, and on two test hosts whose link has a rate and a delay one way (needs root and cc). On two cores
about five minutes for the one, and fifteen for the others.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from typing import Any

from common import BIN, ROOT, described, machine, parsed, parser, publish
from shaped import environment, two_hosts

from tests.cluster.hosts import Cluster
from tests.cluster.links import shaped

RANKS = 2
# Words of a launcher on this host, the flag of `horovod-yolo launch`, and what the rank does.
WAYS = {
    "Horovod over Gloo": (["horovodrun", "--gloo"], "--gloo", "ours"),
    "Horovod over MPI": (
        ["horovodrun", "--mpi", "--mpi-args=--oversubscribe --allow-run-as-root"],
        "--mpi",
        "ours",
    ),
    "torch over Gloo": (["torchrun"], "--torch", "ours"),
    "plain DistributedDataParallel": (["torchrun"], "--torch", "ddp"),
}
REFERENCE = "plain DistributedDataParallel"
LINKS = [(200, 0), (100, 2), (50, 10)]  # Mbit/s, ms one way
STEPS_OF_A_LINK = 10
Rates = dict[str, list[float]]


def images_per_s(said: str) -> float:
    """What rank 0 of a job says."""
    found = re.search(r"images/s ([\d.]+)", said)
    if found is None:
        raise RuntimeError(said)
    return float(found[1])


def json_of(said: str) -> str:
    """The object of JSON in what a job prints, whatever else MPI puts on that line."""
    start = said.index("{")
    _, length = json.JSONDecoder().raw_decode(said[start:])
    return said[start : start + length]


def job_here(way: str, words: list[Any], ranks: int = RANKS, **variables: str) -> str:
    """What some ranks of `engines_rank.py` on this host print."""
    return launched(way, ["benchmarks/engines_rank.py", *words], ranks, **variables)


def launched(way: str, program: list[Any], ranks: int = RANKS, **variables: str) -> str:
    """What some ranks of a Python program on this host print."""
    launcher = WAYS[way][0]
    if launcher[0] == "torchrun":
        number = ["--standalone", "--no-python", "--nproc-per-node", ranks]
    else:
        number = ["-np", ranks, "-H", f"localhost:{ranks}"]
    head = [BIN / launcher[0], *launcher[1:], *number]
    command = [*map(str, head), sys.executable, *map(str, program)]
    here = {**os.environ, **environment(), "PATH": f"{BIN}:{os.environ['PATH']}", **variables}
    done = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return re.sub(r"^\[\d[^\]]*\]<stdout>: ?", "", done.stdout, flags=re.MULTILINE)  # of horovodrun


def on_two_hosts(cluster: Cluster, flag: str, how: str) -> float:
    """Started as a user would, by one command on host1."""
    hosts = ["--hosts", "host1:1,host2:1", "--interface", "eth0"]
    launch = [sys.executable, "-m", "horovod_yolo.cli", "launch", flag, *hosts, "--"]
    words = [*launch, str(ROOT / "benchmarks/engines_rank.py"), how, str(STEPS_OF_A_LINK)]
    return images_per_s(cluster["host1"].run(words, env=environment(), cwd=ROOT, timeout=300).stdout)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--links", type=int, default=len(LINKS), help="so many of them (all)")
    p.add_argument("--only", choices=("host", "links"))
    args = parsed(p, steps=5, turns=1, links=1)
    if args.only in (None, "host"):
        compare_on_one_host(args.steps, args.turns)
    if args.only in (None, "links"):
        compare_over_links(args.turns, LINKS[: args.links])


def compare_on_one_host(steps: int, turns: int) -> None:
    rates: Rates = {way: [] for way in WAYS}
    for _ in range(turns):
        for way, (*_, how) in WAYS.items():
            rates[way].append(images_per_s(job_here(way, [how, steps])))
            print(way, rates[way][-1], flush=True)
    facts = machine()
    publish("engines", {"machine": facts, "images_per_s": rates}, table_of(rates, facts))


def compare_over_links(turns: int, links: list[tuple[int, int]]) -> None:
    rates: dict[str, Rates] = {
        f"{rate} Mbit/s, {delay} ms": {way: [] for way in WAYS} for rate, delay in links
    }
    with two_hosts() as cluster:
        for _ in range(turns):
            for (rate, delay), of_link in zip(links, rates.values(), strict=True):
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
