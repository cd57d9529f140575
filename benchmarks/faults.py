"""Faults in elastic jobs: does the job go on, how soon, what is lost, and is the result as good?

    PYTHONPATH=. python benchmarks/faults.py [FAULT ...]

The launcher is on a host of its own, with a rank on each of two others (namespaces with an sshd each; needs
root), and a fourth host for "host added". Each fault meets the last quarter of the same training, which goes
on from a checkpoint of the one without a fault: digits, yolov5n, 96 px.

Without names all faults are run, minutes each on two cores. A row goes into the table as soon as it is there;
rows of earlier calls stay where the settings are the same. What the jobs print is kept in runs/faults.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from common import ROOT, described, machine, parsed, parser, publish, results_file, runs

from horovod_yolo.data.digits import make_digits
from tests.cluster.elastic import ElasticJob
from tests.cluster.hosts import Cluster
from tests.helpers.runs import checkpoint

IMAGES, SIDE, BATCH, EPOCHS, COMMIT_EVERY = 1500, 96, 24, 16, 5
TRAINING_IMAGES = IMAGES * 4 // 5
START_EPOCH = 12  # of all jobs but that without a fault
START = START_EPOCH * IMAGES * 4 // 5 // BATCH  # steps
FAULT_AT = START + 33  # not a multiple of COMMIT_EVERY, or a fault would find everything committed
HOSTS = {"host2": 1, "host3": 1}
SEED, RANDOM_FAULTS, LONGEST_GAP_S, LONGEST_CUT_S = 7, 20, 3.0, 20.0
DOCUMENT = ROOT / "docs" / "fault_tolerance.md"


@dataclass
class Outcome:
    """What a fault did to a job."""

    fault: str
    end: str
    next_step_s: float | None  # from the fault to the first step of the next world
    changes: int  # of the world
    steps_lost: int  # done before a change of the world and done again, at most
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
    """A host that is cut off three times: too short to matter, nearly too long, too long."""
    for seconds in (4, 12, 20):
        job.cluster["host3"].cut()
        time.sleep(seconds)
        job.cluster["host3"].heal()
        time.sleep(8)


def add_host(job: ElasticJob) -> None:
    """One more host."""
    name = job.cluster.add_host().name
    job.slots[name] = 1
    job.write_hosts()


def too_few(job: ElasticJob) -> None:
    """One of two hosts without power, where two are needed."""
    job.cluster["host3"].power_off()


def twenty_at_random(job: ElasticJob) -> None:
    """Twenty faults at random hosts, each mended after a while.

    Each comes a little after a step of two ranks or more: where all are lost at once nobody is left.
    """
    chance = random.Random(SEED)
    for _ in range(RANDOM_FAULTS):
        host = job.cluster[chance.choice([host for host in job.slots if job.cluster[host].ranks()])]
        kind = chance.choice(["kill", "stop", "cut", "drop"])
        if kind in ("kill", "stop"):
            job.signal_rank(host, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        else:
            (host.cut if kind == "cut" else host.drop)()
            time.sleep(chance.uniform(1, LONGEST_CUT_S))
            (host.heal if kind == "cut" else host.undrop)()
        job.until(partial(goes_on, job, job.step), 300)
        time.sleep(chance.uniform(0, LONGEST_GAP_S))


def goes_on(job: ElasticJob, step: int) -> bool:
    """Whether two ranks or more have come further than a step."""
    return job.step > step and job.worlds[-1][0] >= 2


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
MANY_CHANGES = (flap, twenty_at_random)


class Watch:
    """Counts, in a thread, the steps that are done again when the world changes."""

    def __init__(self, job: ElasticJob) -> None:
        self._job = job
        self._first = len(job.worlds)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.lost: list[int] = []

    def _watch(self) -> None:
        last = self._job.step
        while not self._over.wait(0.05):
            step = self._job.step
            for _, went_on_from in self._job.worlds[self._first + len(self.lost) :]:
                self.lost.append(max(last - went_on_from, 0))
                last = went_on_from
            last = max(last, step)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def go_on_from_start(run: Path) -> None:
    """Make the folder of a run that goes on with the undisturbed one after its first epochs."""
    (run / "weights").mkdir(parents=True)
    shutil.copy(runs("faults/none") / "weights" / f"epoch{START_EPOCH}.pt", run / "weights" / "last.pt")
    shutil.copy(runs("faults/none") / "config.yaml", run)
    for table, rows in (("steps.csv", START), ("results.csv", START_EPOCH)):
        lines = (runs("faults/none") / table).read_text().splitlines(keepends=True)
        (run / table).write_text("".join(lines[: 1 + rows]))


def meet(name: str, epochs: int) -> Outcome:
    """Run the training and let the fault happen in it."""
    fault = FAULTS[name]
    least, wait_s = (2, 30) if fault is too_few else (1, 120)
    data = runs("faults/digits") / "data.yaml"
    train = (
        f"--data {data} --img {SIDE} --batch {BATCH} --epochs {epochs} --noval "
        f"--commit-every {COMMIT_EVERY} --optimizer AdamW --cos-lr --cache ram "
        "--hyp horovod_yolo/config/hyp.digits.anchor_based.yaml "
        f"--elastic-wait {wait_s} --save-period {START_EPOCH} --resume auto"
    )
    hosts = HOSTS | ({"host4": 1} if fault is twenty_at_random else {})
    launch = ["--elastic-timeout", str(2 * wait_s)]
    with tempfile.TemporaryDirectory(prefix="f-") as name_of_folder:
        folder = Path(name_of_folder)
        if fault is not None:
            go_on_from_start(folder / "run")
        with (
            Cluster(1 + len(hosts), folder / "c") as cluster,
            ElasticJob(cluster, folder, hosts, (len(hosts), least, 4), train, launch) as job,
        ):
            began, seconds, lost = time.monotonic(), None, list[int]()
            if fault is not None:
                job.until_step(FAULT_AT, 300)
                seconds, lost = under(fault, job)
            code = job.finish(3000)
            (runs("faults") / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log").write_text(job.output)
            if fault is None:
                shutil.copytree(job.run, runs("faults/none"), dirs_exist_ok=True)
            return outcome(name, job, epochs, code, (seconds, lost), time.monotonic() - began)


def under(fault: Callable[[ElasticJob], None], job: ElasticJob) -> tuple[float | None, list[int]]:
    """Seconds until the first step after a fault, where that can be said, and steps lost in each change.

    Returns when the job has ended.
    """
    began, seconds = time.monotonic(), None
    with Watch(job) as watch:
        fault(job)
        if fault is not too_few and fault not in MANY_CHANGES:
            job.until(lambda: len(watch.lost) > 0, 300)
            step = job.worlds[-1][1]
            job.until(lambda: job.step > step, 300)
            seconds = time.monotonic() - began
        job.finish(3000)
    return seconds, watch.lost


def outcome(
    name: str, job: ElasticJob, epochs: int, code: int, found: tuple[float | None, list[int]], wall_s: float
) -> Outcome:
    """What is left to see when the job is over."""
    sums, metrics = job.images_of_epochs(), None
    seconds, lost = found
    if code:
        end = "exit 3 with a checkpoint" if "exit with status code 3." in job.output else f"exit {code}"
        last = job.step - checkpoint(job.run)["step"]
        lost, exact = [*lost, last], set(sums[:-1]) <= {TRAINING_IMAGES}  # the last epoch is not over
    else:
        end, metrics = "done", cast(dict[str, Any], job.results["metrics"])
        exact = sums == [TRAINING_IMAGES] * epochs
    map50 = metrics["mAP50"] if metrics else None
    return Outcome(name, end, seconds, len(found[1]), max(lost, default=0), exact, map50, wall_s)


def row(found: Outcome, undisturbed: float | None) -> str:
    """A line of the table."""
    cells = (
        found.fault,
        found.end,
        "" if found.next_step_s is None else f"{found.next_step_s:.1f}",
        str(found.changes),
        str(found.steps_lost),
        "yes" if found.images_exact else "NO",
        "" if found.map50 is None else f"{found.map50:.3f}",
        "" if found.map50 is None or undisturbed is None else f"{found.map50 - undisturbed:+.3f}",
    )
    return f"| {' | '.join(cells)} |"


def with_earlier(found: list[Outcome], settings: dict[str, Any]) -> list[Outcome]:
    """These and, of the same settings, those of earlier calls, in the order of `FAULTS`."""
    file = results_file("faults")
    earlier: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    rows = earlier["faults"] if earlier.get("settings") == settings else []
    every = {row["fault"]: Outcome(**row) for row in rows} | {outcome.fault: outcome for outcome in found}
    return [every[name] for name in FAULTS if name in every]


def publish_table(found: list[Outcome], epochs: int, facts: dict[str, Any]) -> None:
    """Write the rows and those of earlier calls into the results and the document."""
    settings = {
        "images": IMAGES,
        "side": SIDE,
        "batch": BATCH,
        "epochs": epochs,
        "commit_every": COMMIT_EVERY,
        "start": START,
        "fault_at": FAULT_AT,
        "machine": facts,
    }
    rows = with_earlier(found, settings)
    undisturbed = next((outcome.map50 for outcome in rows if outcome.fault == "none"), None)
    table = (
        "| fault | end | s to the next step | changes of the world | most steps done again in one "
        "| every image once an epoch | mAP50 | less that of none |\n|---|---|---|---|---|---|---|---|\n"
        + "\n".join(row(outcome, undisturbed) for outcome in rows)
    )
    how = (
        f"A rank on each of two hosts, `--commit-every {COMMIT_EVERY}`, Gloo's time-out 30 s, "
        f"{epochs} epochs of {TRAINING_IMAGES} images at {SIDE} px, batches of {BATCH}. The fault is after "
        f"step {FAULT_AT}, in a job that goes on after step {START} with the training of the "
        "first line. The random ones come to three ranks on three hosts."
    )
    recorded = {"settings": settings, "faults": [asdict(outcome) for outcome in rows]}
    publish("faults", recorded, f"{table}\n\n{how} {described(facts)}", DOCUMENT)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("faults", nargs="*", metavar="FAULT", help=f"one of: {'; '.join(FAULTS)}")
    args = parsed(options, faults=["none"])
    wanted, epochs = args.faults or list(FAULTS), 2 if args.quick else EPOCHS
    for name in wanted:
        if name not in FAULTS:
            sys.exit(f"error: no fault {name!r}; one of: {'; '.join(FAULTS)}")
    facts = machine()
    if not (runs("faults") / "digits").exists():
        make_digits(runs("faults") / "digits", images=IMAGES, size=SIDE, seed=0)
    os.environ["XDG_CACHE_HOME"] = str(runs("faults") / "cache")  # of the ranks, who share the disk
    for name in wanted:
        if FAULTS[name] is not None and not runs("faults/none").exists():
            sys.exit("error: the others go on from a checkpoint of the fault 'none': run that first")
        found = meet(name, epochs)
        print(row(found, None), flush=True)
        publish_table([found], epochs, facts)


if __name__ == "__main__":
    main()
