"""Whether a logger delays training: epochs and steps with servers that work, hang, are down, or come back.

    PYTHONPATH=. python benchmarks/loggers.py

Claim: no epoch and no step waits for a logger. yolov5n on one process, 64 px, a batch of 8; the row of each
step is sent as it is made. A job for each way, by turns. The servers are MLflow's own, also killed while
training goes on and then started again; one that takes connections and never answers, and none; for wandb
that of the tests, which works or never answers. About twenty minutes.
"""

from __future__ import annotations

import contextlib
import csv
import socket
import statistics
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import ROOT, described, machine, parsed, parser, publish, runs, train

from horovod_yolo.data.digits import make_digits
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.wandb_server import KEY, WandbServer

IMAGES, BATCH, TURNS = 120, 8, 3
STEPS = IMAGES * 4 // 5 // BATCH  # of an epoch
FIRST = 2  # epochs that are not counted: the clients start meanwhile
EPOCHS, MANY = 6, 40  # many: while a server is killed and started again
SECONDS_AWAY = 10.0  # that a killed server is not even started: until the job has noticed
NONE, BACK = "none", "MLflow, killed and back"
TIMES = "times"  # file of a job, a line a step
Variables = dict[str, str]


@contextlib.contextmanager
def mlflow(folder: Path) -> Iterator[MlflowServer]:
    """MLflow's own server."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = MlflowServer(folder / "mlflow", port)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def works(folder: Path) -> Iterator[Variables]:
    """It is there all the time."""
    with mlflow(folder) as server:
        yield {"MLFLOW_TRACKING_URI": server.url}


@contextlib.contextmanager
def comes_back(folder: Path) -> Iterator[Variables]:
    """It is killed after the first epochs, and started again. In the end it has each step once."""
    over = threading.Event()

    def disturb(server: MlflowServer) -> None:
        while lines(folder / TIMES) < FIRST * STEPS:
            if over.wait(0.1):
                raise RuntimeError("the job ended before its first epochs")
        server.kill()
        over.wait(SECONDS_AWAY)
        server.start()
        if over.is_set():
            raise RuntimeError(f"the job ended before the server was back: it needs more than {MANY} epochs")

    with mlflow(folder) as server, ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(disturb, server)
        try:
            yield {"MLFLOW_TRACKING_URI": server.url}
        finally:
            over.set()
        disturbed.result()
        require_each_step_once(server.url)


def require_each_step_once(url: str) -> None:
    """Raise where the server lacks a step of the one run that it has, or has one twice."""
    from mlflow import MlflowClient

    client = MlflowClient(url)
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    found = [point.step for point in client.get_metric_history(run.info.run_id, "step")]
    if found != list(range(1, MANY * STEPS + 1)):
        raise RuntimeError(f"the server has {len(found)} steps: {found}")


def lines(file: Path) -> int:
    """How many a file has that may not be there yet."""
    return file.read_text().count("\n") if file.exists() else 0


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
    BACK: ("mlflow", comes_back),
    "MLflow, hangs": ("mlflow", hangs),
    "MLflow, is down": ("mlflow", is_down),
    "wandb": ("wandb", lambda _: wandb(answers=True)),
    "wandb, hangs": ("wandb", lambda _: wandb(answers=False)),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=TURNS)
    args = parsed(options, turns=1)
    ways = [NONE, BACK] if args.quick else list(WAYS)
    folder = runs("loggers").resolve()
    if not (folder / "digits").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_digits(folder / "digits", images=IMAGES, size=64)
    rates: dict[str, list[list[float]]] = {way: [] for way in ways}
    seconds: dict[str, list[list[float]]] = {way: [] for way in ways}
    for turn in range(args.turns):
        for way in ways if turn % 2 == 0 else reversed(ways):
            of_epochs, of_steps = trained(folder, way)
            rates[way].append(of_epochs)
            seconds[way].append(of_steps)
    facts = machine()
    found = {"machine": facts, "images_per_s": rates, "seconds_of_steps": seconds}
    publish("loggers", found, table_of(rates, seconds, facts))


def trained(folder: Path, way: str) -> tuple[list[float], list[float]]:
    """Images a second of a job's epochs, and seconds of its steps, without those in which it starts."""
    name, place = WAYS[way]
    epochs = MANY if way in (NONE, BACK) else EPOCHS
    with tempfile.TemporaryDirectory() as run, place(Path(run)) as variables:
        words = f"--cfg yolov5n --img 64 --batch {BATCH} --epochs {epochs} --workers 0 --noval --noplots"
        where = ["--device", "cpu", "--hyp", f'{{"nbs": {BATCH}}}']  # each batch is a step
        where += ["--data", str(folder / "digits" / "data.yaml"), "--project", run, "--name", "run"]
        log = folder / "logs" / f"{way.replace(', ', '-').replace(' ', '-')}.log"
        variables = {**variables, "OMP_NUM_THREADS": "1", "STEP_TIMES": str(Path(run) / TIMES)}
        script = ROOT / "benchmarks" / "loggers_rank.py"
        train([*words.split(), *where, "--log-to", name], 1, log, script, **variables)
        with (Path(run) / "run" / "results.csv").open() as file:
            rates = [float(row["images_per_s"]) for row in csv.DictReader(file)][FIRST:]
        return rates, seconds_of_steps(Path(run) / TIMES, epochs)


def seconds_of_steps(file: Path, epochs: int) -> list[float]:
    """From the end of a step to that of the next one in its epoch: with all that is beside the step."""
    ends = [float(line) for line in file.read_text().split()]
    if len(ends) != epochs * STEPS:
        raise RuntimeError(f"{len(ends)} steps, and not {STEPS} in each of {epochs} epochs")
    of_epochs = [ends[first : first + STEPS] for first in range(FIRST * STEPS, len(ends), STEPS)]
    return [later - earlier for epoch in of_epochs for earlier, later in pairwise(epoch)]


def table_of(
    rates: dict[str, list[list[float]]], seconds: dict[str, list[list[float]]], facts: dict[str, Any]
) -> str:
    heads = [
        "`--log-to`, its server",
        "images/s",
        f"against {NONE}",
        "of the turns",
        "slowest epoch, images/s",
    ]
    heads += ["a step, ms", "slowest step, ms"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for way, turns in rates.items():
        medians = [statistics.median(epochs) for epochs in turns]
        ratios = [a / statistics.median(b) for a, b in zip(medians, rates[NONE], strict=True)]
        slowest = min(rate for epochs in turns for rate in epochs)
        span = (
            " | "
            if way == NONE
            else f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        )
        steps = [1000 * step for turn in seconds[way] for step in turn]
        rows.append(
            f"| {way} | {statistics.median(medians):.1f} | {span} | {slowest:.1f} | "
            f"{statistics.median(steps):.0f} | {max(steps):.0f} |"
        )
    about = (
        f"yolov5n, 64 px, one process of a thread, {STEPS} steps an epoch, each logged; medians of "
        f"{len(rates[NONE])} turns of {EPOCHS - FIRST} epochs after the first {FIRST}, with {NONE} and "
        f"with the server that comes back {MANY - FIRST}: their slowest steps are of as many. "
        "Servers run on this host, whose other core they have."
    )
    return "\n".join([*rows, "", f"{about} {described(facts)}"])


if __name__ == "__main__":
    main()
