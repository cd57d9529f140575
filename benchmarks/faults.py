"""Faults in elastic jobs: does the job go on, how soon, what is lost, and is the result as good?

    PYTHONPATH=. python benchmarks/faults.py [FAULT ...]

Each fault meets a job of three ranks on three hosts (namespaces with an sshd each; needs root) in the middle
of the same training: digits, yolov5n, 96 px. Without names all faults are run, minutes each on two cores.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import ROOT, described, machine, publish

from horovod_yolo.data.digits import make_digits
from tests.cluster.elastic import ElasticJob
from tests.cluster.hosts import Cluster

IMAGES, EPOCHS, COMMIT_EVERY = 600, 12, 5
HOSTS = {"host2": 1, "host3": 1, "host4": 1}
FAULT_AT = 58  # steps; not a multiple of COMMIT_EVERY, or a fault would find everything committed
SEED, RANDOM_FAULTS, SECONDS_BETWEEN = 7, 20, 12.0
DOCUMENT = ROOT / "docs" / "fault_tolerance.md"


@dataclass
class Outcome:
    """What a fault did to a job."""

    fault: str
    end: str
    next_step_s: float | None  # from the fault to the first step of the next world
    steps_lost: int | None  # done before it and done again
    images_exact: bool
    map50: float | None
    wall_s: float


def kill_worker(job: ElasticJob) -> None:
    """SIGKILL of a rank."""
    job.signal_rank(job.cluster["host3"], signal.SIGKILL)


def stop_worker(job: ElasticJob) -> None:
    """SIGSTOP of a rank."""
    job.signal_rank(job.cluster["host3"], signal.SIGSTOP)


def cut_off(job: ElasticJob) -> None:
    """The cable of a host out: some allreduce is always under way."""
    job.cluster["host3"].cut()


def black_hole(job: ElasticJob) -> None:
    """A host whose packets go nowhere."""
    job.cluster["host3"].drop()


def power_off(job: ElasticJob) -> None:
    """A host without power."""
    job.cluster["host3"].power_off()


def lose_rank_0(job: ElasticJob) -> None:
    """The host of rank 0 without power."""
    job.cluster[job.host_of_rank_0()].power_off()


def flap(job: ElasticJob) -> None:
    """A host that is cut off for 8 s, three times."""
    for _ in range(3):
        job.cluster["host3"].cut()
        time.sleep(8)
        job.cluster["host3"].heal()
        time.sleep(8)


def add_host(job: ElasticJob) -> None:
    """A fourth host."""
    name = job.cluster.add_host().name
    job.slots[name] = 1
    job.write_hosts()


def too_few(job: ElasticJob) -> None:
    """Two of three hosts without power, where two are needed."""
    job.cluster["host3"].power_off()
    job.cluster["host4"].power_off()


def twenty_at_random(job: ElasticJob) -> None:
    """Twenty faults at random hosts and times, each mended after a while."""
    chance = random.Random(SEED)
    for _ in range(RANDOM_FAULTS):
        host = job.cluster[chance.choice(sorted(HOSTS))]
        kind = chance.choice(["kill", "stop", "cut", "drop"])
        if kind in ("kill", "stop"):
            if host.ranks():
                job.signal_rank(host, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        else:
            (host.cut if kind == "cut" else host.drop)()
            time.sleep(chance.uniform(1, SECONDS_BETWEEN))
            (host.heal if kind == "cut" else host.undrop)()
        time.sleep(chance.uniform(0, SECONDS_BETWEEN))


FAULTS: dict[str, Callable[[ElasticJob], None] | None] = {
    "none": None,
    "worker killed (SIGKILL)": kill_worker,
    "worker stopped (SIGSTOP)": stop_worker,
    "host cut off": cut_off,
    "silent black hole": black_hole,
    "host powered off": power_off,
    "rank 0's host powered off": lose_rank_0,
    "host added": add_host,
    "host flapping": flap,
    "below --min-np": too_few,
    "20 random faults": twenty_at_random,
}


def meet(name: str, data: Path) -> Outcome:
    """Run the training and let the fault happen in its middle."""
    fault, least = FAULTS[name], 2 if name == "below --min-np" else 1
    epochs = EPOCHS * (10 if fault is twenty_at_random else 1)
    train = (
        f"--data {data} --img 96 --batch 24 --epochs {epochs} --commit-every {COMMIT_EVERY} --noval "
        "--optimizer AdamW --cos-lr --hyp horovod_yolo/config/hyp.digits.yaml --cache ram --elastic-wait 30"
    )
    with (
        tempfile.TemporaryDirectory(prefix="f-") as folder,
        Cluster(4, Path(folder) / "c") as cluster,
    ):
        start = time.monotonic()
        launch = ["--elastic-timeout", "60"]
        with ElasticJob(cluster, Path(folder), HOSTS, (3, least, 4), train, launch) as job:
            seconds = lost = None
            if fault is not None:
                job.until_step(FAULT_AT)
                since, before, began = len(job.worlds), job.step, time.monotonic()
                fault(job)
                if fault is not too_few:
                    job.until(lambda: len(job.worlds) > since, 300)
                    lost = max(before - job.worlds[since][1], 0)
                    step = job.worlds[-1][1]
                    job.until(lambda: job.step > step, 300)
                    seconds = None if fault in (flap, twenty_at_random) else time.monotonic() - began
            code = job.finish(1800)
            return outcome(name, job, code, (seconds, lost), (data, epochs), time.monotonic() - start)


def outcome(
    name: str,
    job: ElasticJob,
    code: int,
    measured: tuple[float | None, int | None],
    planned: tuple[Path, int],
    wall_s: float,
) -> Outcome:
    """What is left to see when the job is over."""
    sums = job.images_of_epochs()
    if code:
        end = "exit 3 with a checkpoint" if "exit with status code 3." in job.output else f"exit {code}"
        # The last epoch is not over, so only the finished ones can be counted.
        return Outcome(name, end, *measured, set(sums[:-1]) <= {IMAGES * 4 // 5}, None, wall_s)
    metrics: Any = job.results["metrics"]
    exact = sums == [IMAGES * 4 // 5] * planned[1]
    return Outcome(name, "done", *measured, exact, metrics["mAP50"], wall_s)


def row(found: Outcome) -> str:
    """A line of the table."""
    cells = (
        found.fault,
        found.end,
        "" if found.next_step_s is None else f"{found.next_step_s:.1f}",
        "" if found.steps_lost is None else str(found.steps_lost),
        "yes" if found.images_exact else "NO",
        "" if found.map50 is None else f"{found.map50:.3f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    wanted = sys.argv[1:] or list(FAULTS)
    with tempfile.TemporaryDirectory(prefix="digits-") as folder:
        make_digits(Path(folder) / "digits", images=IMAGES, size=96, seed=0)
        found = []
        for name in wanted:
            found.append(meet(name, Path(folder) / "digits" / "data.yaml"))
            print(row(found[-1]), flush=True)
    facts = machine()
    table = (
        "| fault | end | s to the next step | steps done again | every image once an epoch | mAP50 |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(map(row, found))
    )
    how = (
        f"Three ranks on three hosts, `--commit-every {COMMIT_EVERY}`, Gloo's time-out 30 s, "
        f"{EPOCHS} epochs of {IMAGES} images at 96 px."
    )
    recorded = {"machine": facts, "faults": [asdict(outcome) for outcome in found]}
    publish("faults", recorded, f"{table}\n\n{how} {described(facts)}", DOCUMENT)


if __name__ == "__main__":
    main()
