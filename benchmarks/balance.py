"""Two machines, of which one is three times slower: what --balance makes of them.

    PYTHONPATH=. python benchmarks/balance.py [quota] [affinity] [--turns 3] [--more]

Claim: `auto` reaches 0.9 of the pace of the best whole-slice shares, which follow from the time that a slice
takes each machine alone; `off` goes at the slow one's pace; the digests of all runs are equal.

The machines are hosts in namespaces, with a hardware thread each (needs root and two of them). One is slowed
by a quota of its control group (of version 1), or by two processes that spin on its thread. Eight slices,
yolov5n on digits of 96 px. The pace is that of the second half of a run. About ten minutes a way and turn.
Each turn is in benchmarks/results when it has ended; with ``--more`` those that are there stay.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from common import described, earlier, machine, parsed, parser, publish, runs

from horovod_yolo.data.digits import make_digits
from horovod_yolo.training.balance import best_shares
from tests.cluster.elastic import StaticJob
from tests.cluster.hosts import Cluster, Host
from tests.helpers.runs import sha256

SLICES, IMAGES, SIDE, BATCH, EPOCHS, SHARE = 8, 200, 96, 16, 8, 3
EPOCH = IMAGES * 4 // 5 // BATCH  # its steps
CGROUP = Path("/sys/fs/cgroup/cpu/horovod_yolo-balance")
PERIOD_US = 20_000
SPIN = "while True: pass"
WAYS = ("quota", "affinity")
SLOW, FAST = "host2", "host3"
ANEW = re.compile(r"after step (\d+) slices are shared anew")
Found = dict[str, Any]


class Job(StaticJob):
    """A job on hosts with weights; ``horovod-yolo launch`` reads them in the hostfile."""

    def __init__(
        self, cluster: Cluster, name: str, hosts: dict[str, float], balance: str, epochs: int
    ) -> None:
        self._weights = hosts
        folder = runs("balance") / name
        shutil.rmtree(folder, ignore_errors=True)  # an earlier job's steps would be taken for this one's
        folder.mkdir(parents=True)
        train = (
            f"--data {runs('balance')}/digits/data.yaml --hyp {runs('balance')}/hyp.yaml "
            f"--img {SIDE} --batch {BATCH} "
            f"--slices {SLICES} --balance {balance} --epochs {epochs} --noval"
        )
        slots = dict.fromkeys(hosts, 1)
        super().__init__(cluster, folder, slots, (len(hosts),) * 3, train)

    def write_hosts(self) -> None:
        """With weights."""
        lines = (f"{name} slots=1 weight={weight:.6f}\n" for name, weight in self._weights.items())
        self.hostfile.write_text("".join(lines))


@contextmanager
def slowed(host: Host, how: str) -> Iterator[None]:
    """Inside, what the host starts has a third of its hardware thread."""
    if how == "quota":
        CGROUP.mkdir()
        (CGROUP / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (CGROUP / "cpu.cfs_quota_us").write_text(str(PERIOD_US // SHARE))
        (CGROUP / "tasks").write_text(str(host.pid))
        try:
            yield
        finally:
            for left in (CGROUP / "tasks").read_text().split():
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    (CGROUP.parent / "tasks").write_text(left)
            CGROUP.rmdir()
        return
    core = os.sched_getaffinity(host.pid)
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(SHARE - 1)]
    try:
        for process in spinning:
            os.sched_setaffinity(process.pid, core)
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def trained(
    cluster: Cluster, name: str, hosts: dict[str, float], balance: str = "off", epochs: int = EPOCHS
) -> Found:
    """Seconds of a step, results and digest of a run, and after which steps slices were shared anew."""
    steps = EPOCH * epochs
    with Job(cluster, name, hosts, balance, epochs) as job:
        job.until_step(steps // 2, 600)
        half, begun = job.step, time.perf_counter()
        job.until_step(steps - 1, 600)
        seconds = (time.perf_counter() - begun) / (job.step - half)
        if code := job.finish(120):
            raise RuntimeError(f"{code}: {job.output}")
        anew = [int(step) for step in ANEW.findall(job.output)]
        return {"seconds": seconds, "anew": anew, "sha256": sha256(job.run), **job.results}


def turn(cluster: Cluster, how: str) -> Found:
    """All runs of a way once."""
    with slowed(cluster[SLOW], how):
        alone = [trained(cluster, host, {host: 1.0}, epochs=2)["seconds"] / SLICES for host in (SLOW, FAST)]
        best = best_shares(SLICES, alone)
        both = dict(zip((SLOW, FAST), [1 / seconds for seconds in alone], strict=True))
        found = {balance: trained(cluster, balance, both, balance) for balance in ("off", "static", "auto")}
    if found["static"]["slices_of_ranks"] != list(best):
        raise RuntimeError(f"static shares {found['static']['slices_of_ranks']}, not {best}")
    return {
        "alone_s": alone,
        "best": best,
        **{f"{balance}_s": run["seconds"] for balance, run in found.items()},
        "auto": found["auto"]["slices_of_ranks"],
        "anew": found["auto"]["anew"],
        "sha256": sorted({run["sha256"] for run in found.values()}),
    }


def row(how: str, turns: Sequence[Found]) -> str:
    """A line of the table: medians over the turns."""

    def ms(values: list[float]) -> str:
        return f"{1000 * median(values):.0f}"

    def shares(name: str) -> str:
        return "; ".join(sorted({", ".join(map(str, found[name])) for found in turns}))

    reached = [found["static_s"] / found["auto_s"] for found in turns]
    last = max((found["anew"][-1] for found in turns if found["anew"]), default=0)
    cells = (
        how,
        str(len(turns)),
        *(ms([found["alone_s"][rank] for found in turns]) for rank in (0, 1)),
        ms([found["alone_s"][0] * SLICES / 2 for found in turns]),
        ms([found["off_s"] for found in turns]),
        f"{ms([found['static_s'] for found in turns])} ({shares('best')})",
        f"{ms([found['auto_s'] for found in turns])} ({shares('auto')})",
        f"{median(reached):.2f} ({min(reached):.2f} to {max(reached):.2f})",
        str(last),
        "equal" if len({digest for found in turns for digest in found["sha256"]}) == 1 else "DIFFERENT",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("ways", nargs="*", metavar="WAY", help="of: quota, affinity")
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--more", action="store_true", help="turns beside those that were made before")
    args = parsed(options, turns=1, ways=["quota"])
    runs("balance").mkdir(parents=True, exist_ok=True)
    (runs("balance") / "hyp.yaml").write_text(f"nbs: {BATCH}\n")
    if not (runs("balance") / "digits").exists():
        make_digits(runs("balance") / "digits", images=IMAGES, size=SIDE, seed=0)
    os.environ["XDG_CACHE_HOME"] = str(runs("balance") / "cache")  # of the ranks, who share the disk
    ways = args.ways or list(WAYS)
    kept = earlier("balance").get("turns", {})
    turns = {how: kept[how] for how in WAYS if how in kept and (args.more or how not in ways)}
    with tempfile.TemporaryDirectory(prefix="b-") as name, Cluster(3, Path(name) / "c") as cluster:
        for host, core in zip((SLOW, FAST), sorted(os.sched_getaffinity(0)), strict=False):
            os.sched_setaffinity(cluster[host].pid, [core])
        for _ in range(args.turns):
            for how in ways:
                turns.setdefault(how, []).append(turn(cluster, how))
                print(how, turns[how][-1], flush=True)
                tell(turns)


def tell(turns: dict[str, list[Found]]) -> None:
    """Write the file and the table."""
    facts = machine()
    head = (
        "| slowed to a third by | turns | ms a slice alone: slow | fast | ms of four slow slices "
        "| ms a step: `off` | `static`, by these times | `auto` | `static` / `auto` | last change after step "
        "| SHA-256 |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    about = (
        f"yolov5n, {SIDE} px, {SLICES} slices of {BATCH // SLICES} images, "
        f"{EPOCH * EPOCHS} steps in {EPOCHS} epochs."
    )
    table = head + "\n".join(row(how, turns[how]) for how in WAYS if how in turns)
    publish("balance", {"turns": turns, "machine": facts}, f"{table}\n\n{about} {described(facts)}")


if __name__ == "__main__":
    main()
