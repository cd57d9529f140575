"""Random faults, and random kills and resumes: does a run end with the very bits of an undisturbed one?

    PYTHONPATH=. python benchmarks/bitwise_faults.py [elastic] [resumes]

Claim: yes. SHA-256 of weights, averages, optimizer state, metrics and tables are compared; yolov5n on
digits of 64 px, four slices, accumulation over two batches, validated once, after the last epoch.

- elastic: 20 random faults meet ranks on three hosts (namespaces with an sshd each; needs root). A rank is
  killed; a cable is out for a while; a host loses its power and is switched on again; a rank is told to
  stop, as before a preemption, upon which the job ends with a checkpoint and is started again. Where that
  rank is just waiting for the others it leaves alone, and they go on.
- resumes: a job is killed (SIGKILL of everything) 50 times at random moments, and goes on each time on a
  random number of ranks, 1 to 5, over a random engine.

A quarter of an hour each on two cores, and as long again beside other load. What the jobs print is kept in
runs/bitwise_faults.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, described, machine, parsed, parser, publish, results_file, runs

from horovod_yolo.data.digits import make_digits
from tests.cluster.elastic import ElasticJob
from tests.cluster.hosts import Cluster, Host
from tests.helpers import ranks
from tests.helpers.runs import sha256

SIDE, BATCH, SLICES, SEED = 64, 16, 4, 11
FAULTS, LONGEST_GAP_S, LONGEST_CUT_S, LONGEST_START_S = 20, 3.0, 20.0, 2400.0
SETTLES_S = 30.0  # after a cable was out: until ssh has given up a connection
GOES_ON = 3  # steps of a job that was not told to stop
KILLS, MOST_RANKS, MOST_STEPS = 50, 5, 6  # between two kills
IMAGES = {"elastic": 400, "resumes": 80}
EPOCHS = {"elastic": 20, "resumes": 120}
NOMINAL = 32  # images of a step: two batches
KINDS = ("kill", "cable", "host", "preemption")
STOPPED = 3
DOCUMENT = ROOT / "docs" / "fault_tolerance.md"
Found = dict[str, Any]


def flags(part: str) -> list[str]:
    """Of the run of a part, disturbed or not."""
    return [
        *(
            "--data",
            str(runs("bitwise_faults") / f"digits-{part}" / "data.yaml"),
            "--cfg",
            "yolov5n",
            "--img",
            str(SIDE),
        ),
        *("--batch", str(BATCH), "--slices", str(SLICES), "--epochs", str(EPOCHS[part]), "--noval"),
        *("--noplots", "--workers", "0", "--compression", "none", "--optimizer", "AdamW"),
        *("--hyp", str(runs("bitwise_faults") / "hyp.yaml")),
    ]


def undisturbed(part: str) -> str:
    """The digest of the run that one rank makes, and nobody disturbs."""
    place = ["--project", str(runs("bitwise_faults")), "--name", f"{part}-undisturbed"]
    done = ranks.run(["train.py", *flags(part), *place], 1, "plain", timeout=7200)
    if done.code:
        raise RuntimeError(done.output)
    return sha256(runs("bitwise_faults") / f"{part}-undisturbed")


def elastic() -> Found:
    """Faults at random hosts while there are two ranks or more, each mended after a while."""
    chance, met = random.Random(SEED), Counter[str]()
    hosts = {"host2": 1, "host3": 1, "host4": 1}
    train = ["--elastic-wait", "600", "--commit-every", "2", "--resume", "auto", *flags("elastic")]
    began, worlds, starts = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="b-") as name, Cluster(4, Path(name) / "c") as cluster:
        folder, code = Path(name), STOPPED
        while code == STOPPED:
            starts += 1
            launch = ["--elastic-timeout", "900"]
            with ElasticJob(cluster, folder, hosts, (3, 1, 3), " ".join(train), launch) as job:
                code = live_through(job, chance, met)
                worlds += len(job.worlds)
                (runs("bitwise_faults") / f"elastic-{starts}.log").write_text(job.output)
        if code:
            raise RuntimeError(f"the job ended with {code}: {runs('bitwise_faults')}/elastic-{starts}.log")
        steps, digest = job.step, sha256(job.run)
        shutil.copytree(job.run, runs("bitwise_faults") / "elastic-disturbed", dirs_exist_ok=True)
    seconds = time.monotonic() - began
    return {"faults": dict(met), "changes": worlds, "steps": steps, "sha256": digest, "wall_s": seconds}


def live_through(job: ElasticJob, chance: random.Random, met: Counter[str]) -> int:
    """Let what faults are left happen until the job ends, or is told to; its exit code."""
    if not lives(job, 1):
        return STOPPED
    disturbed: dict[str, float] = {}  # hosts, and until when their ranks may still be lost
    while met.total() < FAULTS:
        time.sleep(chance.uniform(0, LONGEST_GAP_S))
        kind = chance.choice(KINDS)
        host = job.cluster[chance.choice([name for name in job.slots if job.cluster[name].ranks()])]
        if not any(survives(job, name, disturbed) for name in job.slots if name != host.name):
            continue
        met[kind] += 1
        print(f"{met.total()}: {kind} at {host.name}, step {job.step}", flush=True)
        if kind == "preemption":
            job.signal_rank(host, signal.SIGTERM)
            if ends(job):
                return STOPPED if stopped(job) else 1
        else:
            befall(kind, host, job, chance)
            disturbed[host.name] = time.monotonic() + SETTLES_S
        if not lives(job, 2):
            return STOPPED
    return job.finish(7200)


def ends(job: ElasticJob) -> bool:
    """Whether a job does that of which a rank was told to stop.

    One that was not in a step, but waited for others, leaves by itself, and the others go on without it.
    """
    before, deadline = len(job.worlds), time.monotonic() + LONGEST_START_S
    while job.running:
        changes = job.worlds[before:]
        if changes and job.step >= changes[-1][1] + GOES_ON:
            return False
        if time.monotonic() > deadline:
            raise AssertionError(f"told to stop, it neither ends nor goes on; it printed:\n{job.output}")
        time.sleep(0.1)
    return True


def lives(job: ElasticJob, least: int) -> bool:
    """Whether so many ranks come further; else the job has waited for them in vain and left a checkpoint."""
    try:
        job.until(partial(goes_on, job, job.step, least), LONGEST_START_S)
    except AssertionError:
        if not stopped(job):
            raise
        return False
    return True


def stopped(job: ElasticJob) -> bool:
    """Whether a job has ended so that it can be started again."""
    return not job.running and job.finish(0) != 0 and "exit with status code 3." in job.output


def survives(job: ElasticJob, name: str, disturbed: dict[str, float]) -> bool:
    """Whether a host has a rank that no fault before can cost: with the last rank its job would be lost."""
    return bool(job.cluster[name].ranks()) and time.monotonic() > disturbed.get(name, 0.0)


def befall(kind: str, host: Host, job: ElasticJob, chance: random.Random) -> None:
    """One fault, and its end."""
    if kind == "kill":
        job.signal_rank(host, signal.SIGKILL)
    elif kind == "cable":
        host.cut()
        time.sleep(chance.uniform(1, LONGEST_CUT_S))
        host.heal()
    else:
        host.power_off()
        time.sleep(chance.uniform(1, LONGEST_CUT_S))
        host.boot()


def goes_on(job: ElasticJob, step: int, least: int) -> bool:
    """Whether so many ranks have come further than a step."""
    return job.step > step and (job.worlds[-1][0] if job.worlds else 3) >= least


def resumes() -> Found:
    """Kills, and resumes on other ranks."""
    chance, met = random.Random(SEED), Counter[str]()
    run, began, killed = runs("bitwise_faults") / "resumes-disturbed", time.monotonic(), 0
    given: list[str | Path] = [
        "--project",
        str(runs("bitwise_faults")),
        "--name",
        run.name,
        "--commit-every",
        "1",
        *flags("resumes"),
    ]
    while killed < KILLS:
        size = chance.randint(1, MOST_RANKS)
        launcher = chance.choice(["gloo", "torchrun"]) if size > 1 else "plain"
        words = given
        if (run / "weights" / "last.pt").exists():
            words = ["--resume", run]
        job = ranks.start(["train.py", *words], size, launcher)
        steps = steps_until_killed(job, run, chance)
        met[f"{size} {launcher}"] += 1
        killed += 1
        print(f"{killed}: {size} ranks, {launcher}, killed after step {steps}", flush=True)
    done = ranks.run(["train.py", "--resume", run], chance.randint(2, MOST_RANKS), timeout=3600)
    if done.code:
        raise RuntimeError(done.output)
    seconds = time.monotonic() - began
    return {"kills": dict(met), "steps": steps_of(run), "sha256": sha256(run), "wall_s": seconds}


def steps_until_killed(job: subprocess.Popen[str], run: Path, chance: random.Random) -> int:
    """Kill a job at a random moment, some steps after its start; how many there are in its table then."""
    enough = steps_of(run) + chance.randint(1, MOST_STEPS)
    deadline = time.monotonic() + LONGEST_START_S
    while steps_of(run) < enough:
        if job.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(ranks.finish(job, 60).output)
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.5))
    if job.poll() is not None:
        raise RuntimeError("the run is too short: " + ranks.finish(job, 60).output)
    ranks.kill(job)
    ranks.finish(job, 60)
    return steps_of(run)


def steps_of(run: Path) -> int:
    """Lines of its table, less the header."""
    table = run / "steps.csv"
    return max(table.read_bytes().count(b"\n") - 1, 0) if table.exists() else 0


PARTS = {"elastic": elastic, "resumes": resumes}


def row(part: str, found: Found) -> str:
    """A line of the table."""
    what = found["faults"] if part == "elastic" else Counter[str]()
    for name, count in found.get("kills", {}).items():
        what[f"on {name.split()[0]}"] = what.get(f"on {name.split()[0]}", 0) + count
    told = ", ".join(f"{count} {name}" for name, count in sorted(what.items()))
    title = "one elastic run, faults" if part == "elastic" else "kills and resumes, by ranks"
    equal = "equal" if found["sha256"] == found["undisturbed"] else "DIFFERENT"
    cells = (title, f"{sum(what.values())}: {told}", str(found["steps"]), equal, f"`{found['sha256'][:16]}`")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)}")
    wanted = parsed(options, parts=["resumes"]).parts or list(PARTS)
    facts = machine()
    os.environ["XDG_CACHE_HOME"] = str(runs("bitwise_faults") / "cache")  # of the ranks, who share the disk
    runs("bitwise_faults").mkdir(parents=True, exist_ok=True)
    (runs("bitwise_faults") / "hyp.yaml").write_text(f"nbs: {NOMINAL}\n")
    every: dict[str, Found] = (
        json.loads(results_file("bitwise-faults").read_text())["parts"]
        if results_file("bitwise-faults").exists()
        else {}
    )
    for part in wanted:
        for left in runs("bitwise_faults").glob(f"{part}-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        make_digits(runs("bitwise_faults") / f"digits-{part}", images=IMAGES[part], size=SIDE, seed=0)
        found = PARTS[part]()
        every[part] = {**found, "undisturbed": undisturbed(part), "machine": facts}
        print(row(part, every[part]), flush=True)
        rows = [row(name, every[name]) for name in PARTS if name in every]
        head = "| what happened | how often | steps | SHA-256 beside the undisturbed run's | its start |\n"
        about = (
            f"yolov5n, {SIDE} px, {SLICES} slices, batches of {BATCH}. With `--noval`: validated once, "
            f"after the last epoch, when the faults were over. {described(facts)}"
        )
        table = head + "|---|---|---|---|---|\n" + "\n".join(rows) + f"\n\n{about}"
        publish("bitwise-faults", {"parts": every}, table, DOCUMENT)


if __name__ == "__main__":
    main()
