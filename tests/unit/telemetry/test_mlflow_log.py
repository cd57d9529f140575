"""MLflow's own client and store: a run is found again, has every row once, and its results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.telemetry.logger import LoggedRun, Point, Sent
from horovod_yolo.telemetry.mlflow_log import MlflowLogger

pytestmark = [  # of MLflow's store, which a client of ours has behind a server
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SETTINGS: dict[str, str | int | float | bool] = {"hyp.lr0": 0.01, "data": "d" * 900, "quad": False}
VARIABLES = ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_DISABLE_TELEMETRY")


_open: list[MlflowLogger] = []


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store that MLflow's server has behind it, without the server: the client can use it too."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    yield
    while _open:
        _open.pop().close()


def opened(run_id: str = "", uid: str = "u") -> tuple[MlflowLogger, Sent]:
    logger = MlflowLogger()
    _open.append(logger)
    return logger, logger.open(LoggedRun(uid, run_id, Path("/runs/exp"), SETTINGS, 0, 0))


def points(first: int, last: int) -> list[Point]:
    return [Point("step", n, 1e9 + n, {"step/lr": 0.5}) for n in range(first, last + 1)]


def run_of(sent: Sent) -> Any:
    from mlflow import MlflowClient

    return MlflowClient().get_run(sent.run_id)


def test_a_run_is_found_again_and_its_rows_are_there_once() -> None:
    """More rows than go into a request; by its id, and by its tag where the id was lost."""
    from mlflow import MlflowClient

    logger, first = opened()
    logger.send(points(1, 700))
    logger.send([Point("epoch", 0, 1e9, {"metrics/mAP_0.5:0.95": 0.25})])
    logger.close()
    again, by_tag = opened()
    assert by_tag == Sent(first.run_id, 700, 0)
    again.send(points(701, 702))
    again.close()
    last, by_id = opened(first.run_id, uid="other")
    assert by_id == Sent(first.run_id, 702, 0)
    last.close()
    history = MlflowClient().get_metric_history(first.run_id, "step/lr")
    assert [(point.step, point.timestamp) for point in history] == [
        (n, 1000 * (10**9 + n)) for n in range(1, 703)
    ]
    there = run_of(first)
    assert there.data.metrics["metrics/mAP_0.5-0.95"] == 0.25
    assert there.data.params == {"hyp.lr0": "0.01", "data": "d" * 500, "quad": "False"}
    assert there.data.tags["horovod_yolo.run"] == "u" and there.info.run_name == "exp"
    _, other = opened(uid="other")
    assert other.run_id != first.run_id and other.step == 0


def test_the_end_is_told() -> None:
    logger, sent = opened()
    logger.finish("broken off", {})
    assert run_of(sent).info.status == "RUNNING"
    logger.finish("stopped", {})
    assert run_of(sent).info.status == "KILLED"
    logger, sent = opened()
    assert run_of(sent).info.status == "RUNNING"
    results = {"metrics": {"mAP50": 0.5, "recall": None}, "best_epoch": 3, "name": "exp"}
    logger.finish("finished", results)
    there = run_of(sent)
    assert there.info.status == "FINISHED"
    assert there.data.metrics == {"results/mAP50": 0.5, "results/best_epoch": 3.0}


def test_a_run_that_was_deleted_there_begins_anew() -> None:
    from mlflow import MlflowClient

    _, sent = opened()
    MlflowClient().delete_run(sent.run_id)
    _, new = opened(sent.run_id)
    assert new.run_id != sent.run_id
    _, unknown = opened("0" * 32)
    assert unknown.run_id == new.run_id


def test_the_experiment_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    _, sent = opened()
    assert MlflowClient().get_experiment(run_of(sent).info.experiment_id).name == "horovod_yolo"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    _, named = opened(uid="v")
    mine = MlflowClient().get_experiment_by_name("mine")
    assert mine is not None and run_of(named).info.experiment_id == mine.experiment_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", run_of(sent).info.experiment_id)
    _, by_id = opened()
    assert by_id.run_id == sent.run_id


def test_the_clients_variables_are_as_they_were() -> None:
    before = dict(os.environ)
    logger, _ = opened()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    logger.close()
    assert dict(os.environ) == before
