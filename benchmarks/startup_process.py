"""What a training spends around its steps, for ``startup.py --process``: the start, and between epochs.

Claims: `train.py --help` takes less than 0.3 s of CPU. Data workers do not stop between two epochs, and
training does not wait there but for its validation: checkpoints are written beside it.

yolov5n on blood cells at ../shared/data/bccd: from the launch to the end of the first step on one rank and on
16 ranks of this host, and epochs with validation on one rank with one data worker. The checkout of --before
goes through the same, by turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import ROOT, described, environment, horovodrun, machine, publish

DATA = ROOT.parent / "shared" / "data" / "bccd" / "data.yaml"
RANKS = (1, 16)
EPOCHS, IMAGES = 4, 16
TURNS = 3
SCRIPT = Path(__file__).with_name("startup_rank.py")
ON_DATA = ("--data", DATA, "--cfg", "yolov5n", "--img", "320", "--batch", IMAGES)
FLAGS = (*ON_DATA, "--noautoanchor", "--device", "cpu")
FIRST_STEP = ("--epochs", "1", "--max-steps", "1", "--noval", "--noplots", "--workers", "1")
WHOLE = ("--noplots", "--workers", "1")
Span = tuple[float, float]  # begun, ended
Moments = list[tuple[str, float, float]]


def measure(folder: Path, before: Path | None, quick: bool) -> None:
    """Measure here, and in another checkout, and publish."""
    checkouts = {**({"before": before} if before else {}), "now": ROOT}
    found: dict[str, Any] = {name: {"help": [], "first step": {}, "epochs": []} for name in checkouts}
    turns, epochs = (1, 2) if quick else (TURNS, EPOCHS)
    all_ranks = (1, 2) if quick else RANKS
    for turn in range(turns):
        for name, checkout in checkouts.items():
            found[name]["help"].append(cpu_s_of_help(checkout))
            for ranks in all_ranks[: None if turn == 0 else 1]:  # of many ranks once
                place = folder / f"{name}-{turn}-{ranks}"
                parts = first_step(run(checkout, place, ranks, FIRST_STEP))
                found[name]["first step"].setdefault(f"{ranks}", []).append(parts)
                print(name, ranks, parts, flush=True)
    for name, checkout in checkouts.items():
        place = folder / f"{name}-epochs"
        found[name]["epochs"] = between_epochs(
            run(checkout, place, 1, (*WHOLE, "--epochs", epochs))[1], place, epochs
        )
        print(name, found[name]["epochs"], flush=True)
    facts = machine()
    publish("startup-process", {"machine": facts, **found}, table_of(found, facts))


def cpu_s_of_help(checkout: Path) -> float:
    """CPU seconds of `train.py --help`."""
    job = subprocess.Popen(
        [sys.executable, "train.py", "--help"],
        cwd=checkout,
        env=environment(checkout),
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(job.pid, 0)
    job.returncode = os.waitstatus_to_exitcode(status)
    if job.returncode:
        raise RuntimeError(f"train.py --help ended with {job.returncode}")
    return used.ru_utime + used.ru_stime


def run(checkout: Path, place: Path, ranks: int, flags: tuple[object, ...]) -> tuple[float, Moments]:
    """Train; when it was launched, and what rank 0 noted."""
    place.mkdir()
    command = [*horovodrun(ranks), sys.executable, SCRIPT, *FLAGS, *flags]
    command += ["--project", place / "runs", "--cache-dir", place.parent / "cache"]
    launched = time.time()
    with (place / "log").open("w") as log:
        subprocess.run(
            [str(word) for word in command],
            cwd=checkout,
            env={**environment(checkout), "STARTUP_NOTES": str(place)},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return launched, json.loads((place / "moments.json").read_text())


def first_step(noted: tuple[float, Moments]) -> dict[str, float]:
    """Seconds from the launch to the end of the first step, and of their parts, in order."""
    launched, moments = noted
    first = {name: (begun, ended) for name, begun, ended in reversed(moments)}
    ends = {
        "interpreter": first["imports"][0],
        "imports": first["imports"][1],
        "ranks meet": first["data"][0],
        "annotations": first["data"][1],
        "model and the rest": first["step"][0],
        "first batch": first["training batch"][1],
        "first step": first["step"][1],
    }
    parts = dict(zip(ends, (after - now for now, after in pairwise([launched, *ends.values()])), strict=True))
    return {**parts, "all": ends["first step"] - launched}


def between_epochs(moments: Moments, place: Path, epochs: int) -> list[dict[str, float]]:
    """Seconds of what happens between each two epochs."""
    samples = [line.split() for file in place.glob("samples-*") for line in file.read_text().splitlines()]
    of: dict[str, list[Span]] = {}
    for name, begun, ended in moments:
        of.setdefault(name, []).append((begun, ended))
    rows = []
    for epoch in range(1, epochs):
        validation, commit = of["validation"][epoch - 1], seconds(of["commit"][epoch - 1])
        last, taken = (before(of[name], validation) for name in ("step", "training batch"))
        first, waited = (after(of[name], validation) for name in ("step", "training batch"))
        begun = min(float(when) for number, when in samples if int(number) == epoch)
        its_first = next(each for each in of["validation batch"] if each[0] >= validation[0])
        rows.append(
            {
                "workers idle": max(begun - taken[1], 0.0),
                "validation": seconds(validation),
                "its first batch": seconds(its_first),
                "commit": commit,
                "checkpoint": seconds(of["checkpoint"][epoch - 1]),
                "first batch": seconds(waited),
                "else": first[0] - last[1] - seconds(validation) - commit,
            }
        )
    return rows


def before(moments: list[Span], moment: Span) -> Span:
    """The last that was over when it began."""
    return max(each for each in moments if each[1] <= moment[0])


def after(moments: list[Span], moment: Span) -> Span:
    """The first that began when it was over."""
    return min(each for each in moments if each[0] >= moment[1])


def seconds(moment: Span) -> float:
    """From its beginning to its end."""
    return moment[1] - moment[0]


def table_of(found: dict[str, Any], facts: dict[str, Any]) -> str:
    lines = ["| what | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]

    def add(what: str, seconds: dict[str, float]) -> None:
        lines.append(f"| {what} | " + " | ".join(f"{value:.2f} s" for value in seconds.values()) + " |")

    def of_first(name: str, ranks: str, part: str) -> float:
        return float(statistics.median(parts[part] for parts in found[name]["first step"][ranks]))

    def between(name: str, part: str) -> float:
        return float(statistics.median(row[part] for row in found[name]["epochs"]))

    add("`train.py --help`, CPU", {name: statistics.median(found[name]["help"]) for name in found})
    for ranks in found["now"]["first step"]:
        ranked = f"{ranks} rank{'' if ranks == '1' else 's'}"
        add(f"first step after launch, {ranked}", {name: of_first(name, ranks, "all") for name in found})
    for part in ("interpreter", "imports", "ranks meet", "annotations", "model and the rest", "first batch"):
        add(f"of it on one rank: {part}", {name: of_first(name, "1", part) for name in found})
    for part, words in (
        ("workers idle", "between epochs: data workers idle after the last batch is taken"),
        ("validation", "validation"),
        ("its first batch", "of it, waited for its first batch"),
        ("commit", "training held up by the checkpoint"),
        ("checkpoint", "the checkpoint, written beside training"),
        ("else", "else between the last step and the first, as reports"),
        ("first batch", "waited for the first batch"),
    ):
        add(words, {name: between(name, part) for name in found})
    now = found["now"]
    note = (
        f"yolov5n, blood cells, 320 px, batches of {IMAGES}, one data worker a rank, a thread each; medians "
        f"of {len(now['help'])} starts (of many ranks one) and of {len(now['epochs'])} ends of epochs. "
    )
    return "\n".join([*lines, "", note + described(facts)])
