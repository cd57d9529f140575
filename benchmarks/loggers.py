"""Whether a logger delays training: epochs with servers that work, hang or are down, against none.

    PYTHONPATH=. python benchmarks/loggers.py

Claim: no epoch waits for a logger. yolov5n on one process, 64 px, a batch of 8; the row of each step is sent
as it is made. A job for each way, by turns. The servers are MLflow's own, one that takes connections and
never answers, and none; for wandb that of the tests, which works or never answers. About ten minutes.
"""

from __future__ import annotations

import contextlib
import csv
import socket
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import described, machine, parsed, parser, publish, runs, train

from horovod_yolo.data.digits import make_digits
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.wandb_server import KEY, WandbServer

IMAGES, EPOCHS, TURNS = 120, 6, 3
FIRST = 2  # epochs that are not counted: the clients start meanwhile
NONE = "none"
Variables = dict[str, str]


@contextlib.contextmanager
def works(folder: Path) -> Iterator[Variables]:
    """MLflow's own server."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = MlflowServer(folder / "mlflow", port)
    server.start()
    try:
        yield {"MLFLOW_TRACKING_URI": server.url}
    finally:
        server.kill()


@contextlib.contextmanager
def hangs(_: Path) -> Iterator[Variables]:
    """Connections are taken by the kernel; nobody reads."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.getsockname()[1]}"}


@contextlib.contextmanager
def is_down(_: Path) -> Iterator[Variables]:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}


@contextlib.contextmanager
def wandb(*, answers: bool) -> Iterator[Variables]:
    """As much of its server as its client asks for."""
    server = WandbServer()
    server.hangs = not answers
    try:
        yield {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    finally:
        server.end()


WAYS = {
    NONE: ("none", lambda _: contextlib.nullcontext({})),
    "TensorBoard": ("tensorboard", lambda _: contextlib.nullcontext({})),
    "MLflow": ("mlflow", works),
    "MLflow, hangs": ("mlflow", hangs),
    "MLflow, is down": ("mlflow", is_down),
    "wandb": ("wandb", lambda _: wandb(answers=True)),
    "wandb, hangs": ("wandb", lambda _: wandb(answers=False)),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=TURNS)
    args = parsed(options, turns=1)
    ways = [NONE, "MLflow, is down"] if args.quick else list(WAYS)
    folder = runs("loggers").resolve()
    if not (folder / "digits").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_digits(folder / "digits", images=IMAGES, size=64)
    rates: dict[str, list[list[float]]] = {way: [] for way in ways}
    for turn in range(args.turns):
        for way in ways if turn % 2 == 0 else reversed(ways):
            rates[way].append(epochs_of(folder, way))
    facts = machine()
    publish("loggers", {"machine": facts, "images_per_s": rates}, table_of(rates, facts))


def epochs_of(folder: Path, way: str) -> list[float]:
    """Images a second of a job's epochs, without those in which it starts."""
    name, place = WAYS[way]
    with tempfile.TemporaryDirectory() as run, place(Path(run)) as variables:
        words = (
            f"--cfg yolov5n --img 64 --batch 8 --epochs {EPOCHS} --workers 0 --device cpu --noval --noplots"
        )
        where = ["--data", str(folder / "digits" / "data.yaml"), "--project", run, "--name", "run"]
        log = folder / "logs" / f"{way.replace(', ', '-').replace(' ', '-')}.log"
        train([*words.split(), *where, "--log-to", name], 1, log, OMP_NUM_THREADS="1", **variables)
        with (Path(run) / "run" / "results.csv").open() as file:
            return [float(row["images_per_s"]) for row in csv.DictReader(file)][FIRST:]


def table_of(rates: dict[str, list[list[float]]], facts: dict[str, Any]) -> str:
    lines = [
        f"| `--log-to`, its server | images/s | against {NONE} | of the turns | slowest epoch, images/s |",
        "|---|---|---|---|---|",
    ]
    for way, turns in rates.items():
        medians = [statistics.median(epochs) for epochs in turns]
        ratios = [a / statistics.median(b) for a, b in zip(medians, rates[NONE], strict=True)]
        slowest = min(rate for epochs in turns for rate in epochs)
        span = (
            "" if way == NONE else f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        )
        lines.append(f"| {way} | {statistics.median(medians):.1f} | {span or ' | '} | {slowest:.1f} |")
    steps, counted = IMAGES * 4 // 5 // 8, EPOCHS - FIRST
    about = (
        f"yolov5n, 64 px, one process of a thread, {steps} steps an epoch, each logged; medians of "
        f"{len(rates[NONE])} turns of {counted} epochs after the first {FIRST}. Servers run on this host, "
        "whose other core they have."
    )
    return "\n".join([*lines, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
