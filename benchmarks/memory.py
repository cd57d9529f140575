"""Resident memory of a training: of its rank and data workers after each epoch, and of a larger data set.

    python benchmarks/memory.py [--epochs 20]

Claims: it is flat after the second epoch; what a thousand images more cost is stated. One rank with two data
workers for training and two for validation trains yolov5n on blood cells at ../shared/data/bccd, 192 px.
Then it trains on 10,000 and on 210,000 made-up images with seven boxes each, for some steps. Sizes are the
kernel's, from smaps_rollup: PSS divides what processes share among them. Other work may share the machine.
Two CPU cores take about six minutes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from common import BIN, ROOT, described, machine, parsed, parser, publish
from many_images import make_images, pretend_scan

DATA = ROOT.parent / "shared" / "data" / "bccd" / "data.yaml"
FLAGS = ("--cfg", "yolov5n", "--noautoanchor", "--device", "cpu", "--noplots", "--workers", "2")
EPOCHS_SHOWN = (1, 2, 5, 10, 20)
BOXES_AN_IMAGE, STEPS = 7, 12
KINDS = {"rank": "the rank", "training": "a data worker of training", "validation": "one of validation"}
MB = 1e6


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--sets", type=int, nargs=2, default=(10_000, 210_000), help="images (10000 210000)")
    args = parsed(p, epochs=2, sets=(500, 1500))
    with tempfile.TemporaryDirectory() as name:
        epochs = over_epochs(Path(name) / "epochs", args.epochs)
        sets = {count: of_a_set(Path(name) / f"{count}", count) for count in args.sets}
    few, many = args.sets
    per_thousand = {
        kind: (sets[many][kind]["pss"] - sets[few][kind]["pss"]) / (many - few) * 1000
        for kind in ("rank", "training", "all")
    }
    facts = machine()
    results = {"machine": facts, "epochs": epochs, "sets": sets, "bytes_per_1000_images": per_thousand}
    publish("memory", results, table_of(epochs, per_thousand, facts))


def over_epochs(folder: Path, epochs: int) -> list[dict[str, dict[str, float]]]:
    """Bytes of the processes at the end of each epoch, by kind."""
    flags = ("--data", DATA, "--img", "192", "--batch", "16", "--epochs", epochs + 1)  # it ends with the last
    with training(folder, *flags) as job:
        found = []
        for epoch in range(1, epochs + 1):
            wait_for_rows(job, folder / "runs" / "run" / "results.csv", epoch)
            found.append(sizes(job.pid))
            print(epoch, found[-1], flush=True)
    return found


def of_a_set(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """The same in the middle of an epoch over so many images; their annotations are made up."""
    train, val = make_images(folder / "train", count), make_images(folder / "val", 100)
    names = train.read_text().splitlines()[-1]
    data = folder / "data.yaml"
    data.write_text(f"train: {train.parent}/images/train\nval: {val.parent}/images/train\n{names}\n")
    cache = folder / "cache"
    (cache / "annotations").mkdir(parents=True, mode=0o700)
    pretend_scan(data, cache / "annotations", BOXES_AN_IMAGE * count)
    flags = ("--data", data, "--img", "64", "--batch", "16", "--epochs", 1, "--max-steps", 2 * STEPS)
    with training(folder, *flags, "--cache-dir", cache) as job:
        wait_for_rows(job, folder / "runs" / "run" / "steps.csv", STEPS)
        found = sizes(job.pid)
    print(count, found, flush=True)
    return found


@contextmanager
def training(folder: Path, *flags: object) -> Iterator[subprocess.Popen[bytes]]:
    """A training under way; it is ended afterwards."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "train.py", *FLAGS, *flags, "--project", folder / "runs", "--name", "run"]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        job = subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield job
        finally:
            job.terminate()
            job.wait()


def wait_for_rows(job: subprocess.Popen[bytes], table: Path, rows: int) -> None:
    """Until the run's table has so many rows below its heading."""
    while not table.exists() or table.read_text().count("\n") <= rows:
        if job.poll() is not None:
            raise RuntimeError(f"the training ended with {job.returncode}: {table} has too few rows")
        time.sleep(0.02)


def sizes(rank: int) -> dict[str, dict[str, float]]:
    """Bytes of a rank, of its data workers in the mean, and of all its processes together."""
    found: dict[str, list[psutil.Process]] = {
        "rank": [psutil.Process(rank)],
        "training": [],
        "validation": [],
    }
    below = found["rank"][0].children(recursive=True)
    workers = sorted(
        (process for process in below if process.ppid() != rank), key=lambda process: process.create_time()
    )
    found["training"], found["validation"] = workers[:2], workers[2:]  # these begin later
    of = {kind: [memory(process.pid) for process in processes] for kind, processes in found.items()}
    means = {
        kind: {size: statistics.mean(each[size] for each in some) for size in ("rss", "pss")}
        for kind, some in of.items()
        if some
    }
    everything = [memory(process.pid) for process in [*found["rank"], *below]]
    return {**means, "all": {size: sum(each[size] for each in everything) for size in ("rss", "pss")}}


def memory(process: int) -> dict[str, float]:
    """Bytes: resident, and with its share of what it shares with others."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kb = {name: float(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return {"rss": kb["Rss"] * 1024, "pss": kb["Pss"] * 1024}


def table_of(
    epochs: list[dict[str, dict[str, float]]], per_thousand: dict[str, float], facts: dict[str, Any]
) -> str:
    shown = [epoch for epoch in EPOCHS_SHOWN if epoch <= len(epochs)]
    lines = [
        "| memory | " + " | ".join(f"epoch {epoch}" for epoch in shown) + " | 1,000 images more |",
        "|---" * (len(shown) + 2) + "|",
    ]
    for kind, words in KINDS.items():
        cells = [
            f"{sizes['rss'] / MB:.0f} ({sizes['pss'] / MB:.0f})"
            for sizes in (epochs[e - 1][kind] for e in shown)
        ]
        more = f"{per_thousand[kind] / MB:.3f}" if kind in per_thousand else ""
        lines.append(f"| {words} | {' | '.join(cells)} | {more} |")
    cells = [f"({epochs[epoch - 1]['all']['pss'] / MB:.0f})" for epoch in shown]
    lines.append(f"| all processes | {' | '.join(cells)} | {per_thousand['all'] / MB:.3f} |")
    note = (
        "MB resident at the end of an epoch, in brackets the proportional set size, of which the last column "
        "is too. yolov5n, blood cells, 192 px, batches of 16, two data workers each; the images more have "
        f"{BOXES_AN_IMAGE} boxes each. "
    )
    return "\n".join([*lines, "", note + described(facts)])


if __name__ == "__main__":
    main()
