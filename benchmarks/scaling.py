"""What two ranks make of two processes that know nothing of each other: on one host, and over slow links.

    python benchmarks/scaling.py [--turns 3] [--only host|links]

Claims: on one host two ranks reach 0.95 of two independent processes at once; between two hosts a step takes
at most 10 % longer than the longer of computation (both at once, without the exchange) and exchange (nothing
else), and less than with DistributedDataParallel. The links need root and cc. About five minutes for the
host; fifteen for the links, whose table is made after each turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from common import ROOT, described, machine, parsed, parser, publish
from engines import RANKS, REFERENCE, WAYS, images_per_s, job_here, json_of
from shaped import environment, two_hosts

from tests.cluster.hosts import Cluster
from tests.cluster.links import shaped

CFG, SIDE, IMAGES = "yolov5n", 320, 8  # images of a rank
WORK = ["--cfg", CFG, "--img", SIDE, "--images", IMAGES]
STEPS, STEPS_OF_A_LINK = 15, 6
SECONDS_TO_START = 15.0  # until independent processes are warm
RATES = (50, 100, 200)  # Mbit/s
ALONE = "independent processes"
RANK = [sys.executable, str(ROOT / "benchmarks" / "engines_rank.py")]
ABOUT = f"{CFG}, {SIDE} px, {IMAGES} images a rank, a thread each"
Figures = dict[str, list[float]]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--links", type=int, default=len(RATES), help="so many of them (all)")
    p.add_argument("--only", choices=("host", "links"))
    args = parsed(p, turns=1, links=1)
    if args.only in (None, "host"):
        on_one_host(args.turns)
    if args.only in (None, "links"):
        over_links(args.turns, RATES[: args.links])


def independent(count: int) -> float:
    """Images a second of some processes at once, none of which knows of another."""
    at = time.time() + SECONDS_TO_START
    command = [*RANK, "alone", STEPS, *WORK, "--at", at]
    processes = [
        subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT,
            env={**os.environ, **environment()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    return sum(images_per_s(process.communicate()[0]) for process in processes)


def on_one_host(turns: int) -> None:
    rates: Figures = {name: [] for name in ("one process", ALONE, *WAYS)}
    others: Figures = {way: [] for way in WAYS}
    for _ in range(turns):
        rates["one process"].append(independent(1))
        rates[ALONE].append(independent(RANKS))
        for way, (*_, how) in WAYS.items():
            said = job_here(way, [how, STEPS, *WORK])
            rates[way].append(images_per_s(said))
            used = json.loads(json_of(said))
            beside = sum(seconds for name, seconds in used["threads"].items() if name != "main")
            others[way].append(beside / used["seconds"])
        print({name: found[-1] for name, found in rates.items()}, flush=True)
    facts = machine()
    results = {"machine": facts, "images_per_s": rates, "other_threads": others}
    publish("scaling-host", results, host_table(rates, others, facts))


def host_table(rates: Figures, others: Figures, facts: dict[str, Any]) -> str:
    lines = [
        "| | images/s | of two independent processes | of the turns | other threads of a rank |",
        "|---|---|---|---|---|",
    ]
    for name, found in rates.items():
        ratios = [rate / peer for rate, peer in zip(found, rates[ALONE], strict=True)]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        beside = f"{statistics.median(others[name]):.0%} of a core" if name in others else ""
        ratio = f"{statistics.median(ratios):.2f}"
        lines.append(f"| {name} | {statistics.median(found):.1f} | {ratio} | {span} | {beside} |")
    about = (
        f"{ABOUT}; medians of {len(rates[ALONE])} turns; other threads: what they use while steps are made."
    )
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


def between_hosts(cluster: Cluster, flag: str, words: list[Any]) -> str:
    """What a job of one rank on each of two hosts prints, started as a user would."""
    hosts = ["--hosts", "host1:1,host2:1", "--interface", "eth0"]
    command = [sys.executable, "-m", "horovod_yolo.cli", "launch", flag, *hosts, "--", RANK[1], *words]
    done = cluster["host1"].run([*map(str, command)], env=environment(), cwd=ROOT, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}")
    return done.stdout


def step_alone(cluster: Cluster) -> float:
    """Seconds of a step on both hosts at once, each for itself."""
    command = [*map(str, [*RANK, "alone", STEPS_OF_A_LINK, *WORK, "--at", time.time() + SECONDS_TO_START])]
    log = cluster.folder / "alone.log"
    other = cluster["host2"].start(command, env=environment(), log=log, cwd=ROOT)
    one = images_per_s(cluster["host1"].run(command, env=environment(), cwd=ROOT, timeout=300).stdout)
    other.wait(60)
    return IMAGES / min(one, images_per_s(log.read_text()))


def over_links(turns: int, rates: Sequence[int]) -> None:
    steps: dict[int, Figures] = {rate: {way: [] for way in WAYS} for rate in rates}
    exchanges: dict[int, Figures] = {rate: {way: [] for way in WAYS} for rate in rates}
    alone: list[float] = []
    facts = machine()
    with two_hosts() as cluster:
        for _ in range(turns):
            for rate in rates:
                alone.append(step_alone(cluster))
                with shaped(cluster, cluster["host2"], rate * 1e6, 0):
                    for way, (_, flag, how) in WAYS.items():
                        found = images_per_s(between_hosts(cluster, flag, [how, STEPS_OF_A_LINK, *WORK]))
                        steps[rate][way].append(RANKS * IMAGES / found)
                        if how == "ours":
                            said = images_per_s(between_hosts(cluster, flag, ["exchange", 4, *WORK]))
                            exchanges[rate][way].append(RANKS * IMAGES / said)
                        print(
                            rate, way, steps[rate][way][-1], exchanges[rate][way][-1:], alone[-1], flush=True
                        )
            results = {"machine": facts, "step_s": steps, "exchange_s": exchanges, "compute_s": alone}
            publish("scaling-links", results, links_table(steps, exchanges, statistics.median(alone), facts))


def links_table(
    steps: dict[int, Figures], exchanges: dict[int, Figures], compute: float, facts: dict[str, Any]
) -> str:
    lines = [
        "| link | engine | exchange alone | step | of the longer of both | step of DDP's |",
        "|---|---|---|---|---|---|",
    ]
    for rate, of_link in steps.items():
        reference = statistics.median(of_link[REFERENCE])
        for way, found in of_link.items():
            step = statistics.median(found)
            cells = ["", f"{step:.3f} s", "", f"{step / reference:.2f}"]
            if exchanges[rate][way]:
                exchange = statistics.median(exchanges[rate][way])
                cells[0], cells[2] = f"{exchange:.3f} s", f"{step / max(compute, exchange):.2f}"
            lines.append(f"| {rate} Mbit/s | {way} | {' | '.join(cells)} |")
    about = (
        f"{ABOUT}, one on each of two hosts; medians of the turns; computation alone, on both at once: "
        f"{compute:.3f} s."
    )
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
