"""``--log-to``: which loggers a run has, and what is wrong at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.loggers import loggers_of
from horovod_yolo.assembly.run import new_run
from horovod_yolo.assembly.train import train
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.tiny_zoo import NAME

from .test_run import settings

pytestmark = pytest.mark.usefixtures("tiny")

COMM = LocalCommunicator()


def flags(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"cfg": NAME, "project": str(folder), "noplots": True, "batch_size": 14, **changes}


def test_loggers_that_were_asked_for() -> None:
    assert loggers_of(TrainConfig(data="d")) == ["tensorboard"]
    assert loggers_of(TrainConfig(data="d", log_to=("none",))) == []
    assert loggers_of(TrainConfig(data="d", log_to=("mlflow", "mlflow"))) == ["mlflow"]
    with pytest.raises(UserError, match="none alone"):
        TrainConfig(data="d", log_to=("none", "mlflow"))


def test_no_address_of_a_server_ends_the_run_before_its_first_step(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = new_run(settings(digits, **flags(tmp_path, log_to=("mlflow",))), COMM)
    with pytest.raises(UserError, match="it is not said where the server is"):
        train(run, COMM)
    assert not run.folder.exists()


@pytest.mark.parametrize(("log_to", "events"), [((), 1), (("none",), 0), (("tensorboard",), 1)])
def test_a_run_has_events_where_it_should(
    digits: Path, tmp_path: Path, log_to: tuple[str, ...], events: int
) -> None:
    run = new_run(settings(digits, **flags(tmp_path, log_to=log_to, max_steps=2)), COMM)
    train(run, COMM)
    assert len(list(run.folder.glob("events.out.tfevents.*"))) == events
