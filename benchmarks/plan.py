"""Plans against what was measured: here over shaped links, and by Horovod's authors on 512 GPUs.

    python benchmarks/plan.py [--turns 3] [--only links|published|curves]

Claims: calibrated on three of nine links between two hosts (50, 100 and 200 Mbit/s x 0, 2 and 10 ms one way),
the median error of the step on the other six is 15 % or less; how far the model is from published figures of
512 GPUs, by inputs that are stated in published_nets.py. It also draws docs/scaling.png, of up to 4,096 GPUs.
Needs root (test hosts) and cc. About 14 minutes on two idle cores: the links take turns, medians count.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from typing import Any

import published_nets
from common import ROOT, described, machine, parsed, parser, publish
from curves import draw
from shaped import run_on_both, two_hosts

from horovod_yolo.planner.fit import Calibration, calibrate
from horovod_yolo.planner.measured import StepFile, read
from horovod_yolo.planner.plan import measured_world, predicted_step
from horovod_yolo.planner.timeline import Compute
from tests.cluster.hosts import Cluster
from tests.cluster.links import shaped

DOCUMENT = ROOT / "docs" / "scaling.md"
MEGABIT, MILLISECOND = 1e6, 1e-3
LINKS = [(rate, delay) for rate in (50, 100, 200) for delay in (0, 2, 10)]
CALIBRATED = [(50, 0), (100, 10), (200, 2)]  # every rate and every delay once
QUICK_LINKS = [*CALIBRATED, (200, 0)]
# Four groups of gradients, so that some of them travel while the backward pass runs.
STEP = "--cfg yolov5n --img 160 --batch 8 --fusion-mb 2 --compression none --device cpu --steps 9 --seconds 8"
Link = tuple[int, int]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--turns", type=int, default=3, help="how often each link is measured (3)")
    p.add_argument("--only", choices=("links", "published", "curves"))
    args = parsed(p, turns=1)
    if args.only in (None, "published"):
        against_published()
    if args.only in (None, "curves"):
        draw()
    if args.only in (None, "links"):
        against_links(args.turns, QUICK_LINKS if args.quick else LINKS)


def against_links(turns: int, links: list[Link]) -> None:
    """Measure steps over each link, by turns, and predict those that calibrate nothing from three."""
    files: dict[Link, list[StepFile]] = {link: [] for link in links}
    with two_hosts() as cluster:
        for turn in range(turns):
            for number, link in enumerate(links):
                files[link].append(measured(cluster, link, 29500 + turn * len(links) + number))
    cases = {link: middle(found) for link, found in files.items()}
    facts = machine()
    rows = compared(cases)
    spread = {str(link): [found.step_s for found in files[link]] for link in links}
    results = {"machine": facts, "command": STEP, "turns": turns, "rows": rows, "step_s": spread}
    publish("plan-links", results, links_table(rows, turns, facts), DOCUMENT)


def measured(cluster: Cluster, link: Link, port: int) -> StepFile:
    """``bench step`` of two ranks over a link."""
    rate, delay = link
    out = cluster.folder / "step.json"
    command = [sys.executable, "-m", "horovod_yolo.cli", "bench", "step", *STEP.split(), "--out", str(out)]
    with shaped(cluster, cluster["host2"], rate * MEGABIT, delay * MILLISECOND):
        run_on_both(cluster, command, port)
    found = read(out)
    assert isinstance(found, StepFile) and found.hosts == 2
    print(link, f"step {found.step_s:.3f} s, alone {found.compute.step_s:.3f} s", flush=True)
    return found


def middle(found: list[StepFile]) -> StepFile:
    """The turn with the middle step, with the medians of the turns' links and computations."""
    comms = [one.comm for one in found if one.comm is not None]
    common = min((comm.allreduce for comm in comms), key=len)
    sums = tuple(
        (size, statistics.median(comm.allreduce[number][1] for comm in comms))
        for number, (size, _) in enumerate(common)
    )
    parts = [
        statistics.median(getattr(one.compute, part) for one in found)
        for part in ("forward_s", "backward_s", "update_s")
    ]
    small_s = statistics.median(comm.small_sum_s or 0.0 for comm in comms)
    return replace(
        found[0],
        step_s=statistics.median(one.step_s for one in found),
        compute=Compute(*parts),
        comm=replace(comms[0], allreduce=sums, small_sum_s=small_s),
    )


def compared(cases: dict[Link, StepFile]) -> list[dict[str, Any]]:
    """Predictions of all links. What is computed without the network comes from the three as well."""
    three = [cases[link] for link in CALIBRATED]
    parts = [
        statistics.median(getattr(one.compute, part) for one in three)
        for part in ("forward_s", "backward_s", "update_s")
    ]
    known = replace(three[0], compute=Compute(*parts))

    def step_s(link: Link, factors: Calibration) -> float:
        comm = cases[link].comm
        assert comm is not None
        world = measured_world(comm)
        of_step = (known.compute, known.groups, world, known.small_sums, factors)
        return predicted_step(*of_step, small_s=comm.small_sum_s).step_s

    factors = calibrate(
        lambda tried: [step_s(link, tried) for link in CALIBRATED], [one.step_s for one in three]
    )
    rows = []
    for link in cases:
        found, comm = cases[link], cases[link].comm
        assert comm is not None
        rows.append(
            {
                "mbit_s": link[0],
                "ms": link[1],
                "measured_mbit_s": comm.link.bytes_per_s * 8 / MEGABIT,
                "measured_ms": comm.link.latency_s / MILLISECOND,
                "step_s": found.step_s,
                "alone_s": found.compute.step_s,
                "plan_s": step_s(link, factors),
                "calibrates": link in CALIBRATED,
                "factors": [factors.compute, factors.network],
            }
        )
    return rows


def links_table(rows: list[dict[str, Any]], turns: int, facts: dict[str, Any]) -> str:
    lines = [
        "| link | as `bench` measures it | step | plan | error |",
        "|---|---|---|---|---|",
    ]
    errors = []
    for row in rows:
        error = row["plan_s"] / row["step_s"] - 1
        if not row["calibrates"]:
            errors.append(abs(error))
        told = "calibrates" if row["calibrates"] else f"{error:+.1%}"
        as_measured = f"{row['measured_mbit_s']:.0f} Mbit/s, {row['measured_ms']:.2f} ms"
        name = f"{row['mbit_s']} Mbit/s, {row['ms']} ms"
        lines.append(f"| {name} | {as_measured} | {row['step_s']:.3f} s | {row['plan_s']:.3f} s | {told} |")
    compute, network = rows[0]["factors"]
    judged = f"Median error of the six: {statistics.median(errors):.1%}, largest {max(errors):.1%}."
    fitted = f"Calibration: computation x {compute:.2f}, messages x {network:.2f}."
    about = (
        "yolov5n, 160 px, 4 images a rank, one rank on each of two test hosts, torch over Gloo, "
        f"groups of 2 MiB, medians of {turns} turns."
    )
    about = " ".join((judged, fitted, about, described(facts)))
    return "\n".join([*lines, "", about])


def against_published() -> None:
    """Predict Horovod's figures of 512 GPUs, and state the error."""
    rows = []
    for net, published in published_nets.PUBLISHED.items():
        compute = published_nets.compute(net)
        groups = published_nets.groups(net)
        world, algorithm = published_nets.WORLD, published_nets.ALGORITHM
        step = predicted_step(compute, groups, world, 0, Calibration(), algorithm)
        rows.append(
            {
                "net": net,
                "images_per_s": published_nets.images_per_s(net),
                "gradient_mb": sum(group.size for group in groups) / 1e6,
                "compute_s": compute.step_s,
                "network_s": step.network_s,
                "exposed_s": step.exposed_s,
                "efficiency": compute.step_s / step.step_s,
                "published": published,
            }
        )
    lines = [
        "| net | one P100 | gradients | alone | network | not hidden | plan | published | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = " | ".join(f"{1e3 * row[part]:.0f} ms" for part in ("compute_s", "network_s", "exposed_s"))
        error = row["efficiency"] / row["published"] - 1
        about = f"{row['images_per_s']:.0f} images/s | {row['gradient_mb']:.0f} MB"
        found = f"{row['efficiency']:.0%} | {row['published']:.0%} | {error:+.0%}"
        lines.append(f"| {row['net']} | {about} | {times} | {found} |")
    publish("plan-published", {"rows": rows}, "\n".join(lines), DOCUMENT)


if __name__ == "__main__":
    main()
