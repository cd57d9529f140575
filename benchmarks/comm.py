"""How long two ranks of a host need for a sum, by its size, over everything that they can talk through.

    python benchmarks/comm.py [--turns 3] [--max-mb 64] [--ranks 2]

``horovod-yolo bench comm`` over Horovod's Gloo, its MPI and torch's Gloo, and the same sizes over mpi4py
alone, by turns: latency, bandwidth, and the line (latency plus bytes over bandwidth) that plans go by.
About five minutes on two cores.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import described, machine, parsed, parser, publish
from engines import WAYS, json_of, launched

from horovod_yolo.planner.comm import SMALL_BYTES, SMALL_SUMS, link_of, sizes_up_to
from horovod_yolo.planner.measured import CommFile, read

MPI4PY = "mpi4py"
ENGINES = [way for way, (*_, how) in WAYS.items() if how == "ours"]
Times = dict[float, float]  # bytes, seconds
SECONDS = 12  # of a measurement


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--max-mb", type=float, default=64.0)
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--as-rank", type=int, help="of mpi4py, up to so many bytes")
    args = parsed(p, turns=1, max_mb=1.0)
    if args.as_rank:
        print(json.dumps(dict(sums_of_mpi4py(args.as_rank))))
        return
    found: dict[str, list[Times]] = {way: [] for way in (*ENGINES, MPI4PY)}
    small: dict[str, list[float]] = {way: [] for way in ENGINES}
    for _ in range(args.turns):
        for way in ENGINES:
            measured = bench_comm(way, args.ranks, args.max_mb)
            found[way].append(dict(measured.allreduce))
            small[way].append(measured.small_sum_s or 0.0)
        program = [__file__, "--as-rank", int(args.max_mb * 2**20)]
        said = json.loads(json_of(launched("Horovod over MPI", program, args.ranks)))
        found[MPI4PY].append({float(size): seconds for size, seconds in said.items()})
        print({way: turns[-1] for way, turns in found.items()}, flush=True)
    medians = {way: middle(turns) for way, turns in found.items()}
    directly = {way: statistics.median(turns) for way, turns in small.items()}
    facts = machine()
    results = {"machine": facts, "ranks": args.ranks, "seconds": medians, "small_sum_s": directly}
    publish("comm", results, table_of(medians, directly, args.ranks, facts))


def bench_comm(way: str, ranks: int, max_mb: float) -> CommFile:
    """What ``horovod-yolo bench comm`` measures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "comm.json"
        flags = ["--device", "cpu", "--seconds", SECONDS, "--max-mb", max_mb, "--out", out]
        launched(way, ["-m", "horovod_yolo.cli", "bench", "comm", *flags], ranks)
        found = read(out)
    assert isinstance(found, CommFile)
    return found


def sums_of_mpi4py(largest: int) -> list[tuple[int, float]]:
    """Medians of this rank, of numbers in its memory."""
    import numpy as np
    from mpi4py import MPI

    found = []
    for size in sizes_up_to(largest):
        own = np.ones(size // 4, np.float32)
        total = np.empty_like(own)
        taken = []
        for _ in range(SMALL_SUMS):
            MPI.COMM_WORLD.Barrier()
            begun = time.perf_counter()
            MPI.COMM_WORLD.Allreduce(own, total)
            taken.append(time.perf_counter() - begun)
        found.append((size, statistics.median(taken)))
    return found if MPI.COMM_WORLD.rank == 0 else sys.exit()


def middle(turns: list[Times]) -> Times:
    """The medians of the turns."""
    return {size: statistics.median(turn[size] for turn in turns) for size in turns[0]}


def table_of(medians: dict[str, Times], directly: dict[str, float], ranks: int, facts: dict[str, Any]) -> str:
    ways = list(medians)
    lines = ["| bytes | " + " | ".join(ways) + " |", "|---|" + "---|" * len(ways)]
    for size in medians[ways[0]]:
        cells = []
        for way in ways:
            seconds = medians[way][size]
            bus = 2 * (ranks - 1) / ranks * size / seconds / 1e6
            cells.append(f"{1e6 * seconds:,.0f} µs ({bus:,.1f} MB/s)")
        lines.append(f"| {size:,.0f} | {' | '.join(cells)} |")
    small = [f"{1e6 * directly[way]:,.0f} µs" if way in directly else "" for way in ways]
    lines.append(f"| a small sum ({SMALL_BYTES:,}) in training | {' | '.join(small)} |")
    fits = [link_of(list(times.items()), ranks, 1) for times in medians.values()]
    told = [f"{1e6 * fit.latency_s:,.0f} µs, {fit.bytes_per_s / 1e6:,.0f} MB/s" for fit in fits]
    lines.append(f"| as a ring's link | {' | '.join(told)} |")
    about = f"{ranks} ranks of one host, a thread each; in brackets 2 (n - 1) / n bytes a second."
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
