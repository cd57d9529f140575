"""``--log-to mlflow`` of real ranks, to MLflow's own server: killed and back, the run killed and resumed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ranks
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.runs import checkpoint, steps

TOKEN = "hunter2-is-the-token"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    made = MlflowServer(tmp_path / "server", port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    made.start()
    yield made
    made.kill()


def flags(data: Path, folder: Path) -> list[str | Path]:
    sizes = ["--cfg", "yolov5n", "--imgsz", "64", "--batch-size", "14", "--workers", "0", "--epochs", "9999"]
    more = ["--noplots", "--noval", "--noautoanchor", "--device", "cpu", "--commit-every", "5"]
    return ["train.py", "--data", data, "--project", folder, *sizes, *more, "--log-to", "mlflow"]


def until(true: Callable[[], bool], job: ranks.subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not true():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def runs_there() -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("horovod_yolo")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def step_there() -> int:
    """The last step that the server has."""
    return max((int(run.data.metrics.get("step", 0)) for run in runs_there()), default=0)


def made(run: Path) -> int:
    return len(steps(run)) if (run / "steps.csv").exists() else 0


@pytest.mark.slow  # minutes: the server is started twice, and takes long for it
def test_every_step_arrives_once_over_a_killed_server_and_a_killed_run(
    digits: Path, tmp_path: Path, server: MlflowServer
) -> None:
    from mlflow import MlflowClient

    run = tmp_path / "runs/exp"
    job = ranks.start(flags(digits, tmp_path / "runs"), 2)
    until(lambda: step_there() >= 5, job)
    server.kill()
    at_kill = made(run)
    until(lambda: made(run) >= at_kill + 20, job)  # training goes on without it
    server.start()
    until(lambda: step_there() >= at_kill + 20, job)
    until(lambda: "loggers" in checkpoint(run) and checkpoint(run)["loggers"]["mlflow"] != "", job)
    first = ranks.kill_ranks(job).output
    before = step_there()

    again = ranks.start(["train.py", "--resume", run, "--log-to", "mlflow"], 2)
    until(lambda: step_there() >= before + 10, again)
    second = ranks.kill_ranks(again).output

    (there,) = runs_there()
    history = MlflowClient().get_metric_history(there.info.run_id, "step")
    assert [point.step for point in history] == list(range(1, step_there() + 1))
    assert [point.value for point in history] == [point.step for point in history]
    assert checkpoint(run)["loggers"]["mlflow"] == there.info.run_id
    assert there.data.params["imgsz"] == "64"
    warnings = [line for line in first.splitlines() if "mlflow: " in line]
    assert len(warnings) == 2, warnings
    assert "training goes on, and what it misses is sent when it works again" in warnings[0]
    assert "works again" in warnings[1] and "mlflow: " not in second
    files = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert len(files) > 4 and not any(TOKEN.encode() in content for content in files)
    assert TOKEN not in first + second


def test_without_an_address_it_is_one_line_and_exit_code_2(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    job = ranks.run(flags(digits, tmp_path / "runs"), 2, "mpirun")
    assert job.code == 2, job.output
    (line,) = [line for line in job.output.splitlines() if "error: " in line]
    assert "--log-to mlflow: it is not said where the server is. set MLFLOW_TRACKING_URI" in line
    assert "Traceback" not in job.output and list((tmp_path / "runs").iterdir()) == []
