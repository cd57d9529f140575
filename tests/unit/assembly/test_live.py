"""``--dashboard`` of whole runs: what is served, by whom, and that training is the same with it."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from horovod_yolo.assembly.run import new_run, resumed_run
from horovod_yolo.assembly.train import train
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.telemetry.dashboard import Dashboard
from tests.helpers.runs import sha256
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import WorldCommunicator, run_world

from .test_run import settings

pytestmark = pytest.mark.usefixtures("tiny")

COMM = LocalCommunicator()


@pytest.fixture
def at_the_end(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What each page says just before the server ends."""
    found: dict[str, str] = {}
    close = Dashboard.close

    def look_and_close(self: Dashboard) -> None:
        for path in ("", "metrics", "api/now", "api/curves"):
            with urllib.request.urlopen(self.address.url + path, timeout=10) as answer:
                found[path] = answer.read().decode()
        close(self)

    monkeypatch.setattr(Dashboard, "close", look_and_close)
    return found


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def flags(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"cfg": NAME, "project": str(folder), "noplots": True, "batch_size": 14, **changes}


def test_a_run_over_two_ranks_is_shown(
    digits: Path, tmp_path: Path, at_the_end: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "horovod_yolo")
    config = settings(digits, **flags(tmp_path, dashboard="0"))
    results = run_world(2, lambda comm: train(new_run(config, comm), comm))[0]

    now, curves = json.loads(at_the_end["api/now"]), json.loads(at_the_end["api/curves"])
    assert now["step"] == results["steps"] and now["epoch"] == now["epochs"] == 2
    assert now["scores"]["mAP50"] == results["metrics"]["mAP50"]
    assert now["facts"]["model"] == NAME and now["facts"]["run"].startswith(str(tmp_path))
    assert any(line["text"].startswith("dashboard: http://127.0.0.1:") for line in now["log"])
    assert [row["step"] for row in curves["steps"]] == list(range(1, results["steps"] + 1))
    assert [row["epoch"] for row in curves["epochs"]] == [1, 2]

    metrics = {
        sample.name.removeprefix("horovod_yolo_"): sample.value
        for family in text_string_to_metric_families(at_the_end["metrics"])
        for sample in family.samples
        if sample.labels.get("rank", "0") == "0" and sample.labels.get("metric", "mAP50") == "mAP50"
    }
    assert metrics["ranks"] == 2 and metrics["epochs_total"] == metrics["epochs_planned"] == 2
    assert metrics["images_total"] == 2 * 28 and metrics["rank_images_total"] == 28
    assert metrics["validation_score"] == results["metrics"]["mAP50"]
    assert metrics["last_checkpoint_timestamp_seconds"] > metrics["start_time_seconds"]
    assert metrics["rank_training_seconds_total"] > 0 and "<h1>" in at_the_end[""]


@pytest.mark.parametrize("size", [1, 3])
def test_the_run_is_the_same_to_the_bit(digits: Path, tmp_path: Path, size: int) -> None:
    def folder_of(name: str, dashboard: str) -> Path:
        config = settings(digits, **flags(tmp_path, name=name, dashboard=dashboard))
        run_world(size, lambda comm: train(new_run(config, comm), comm))
        return tmp_path / name

    shown, plain = folder_of("shown", "0"), folder_of("plain", "")
    assert (shown / "steps.csv").read_bytes() == (plain / "steps.csv").read_bytes()
    assert sha256(shown) == sha256(plain)


def test_a_taken_port_ends_a_new_run_on_all_ranks(digits: Path, tmp_path: Path, taken: int) -> None:
    config = settings(digits, **flags(tmp_path, dashboard=str(taken)))

    def rank(comm: WorldCommunicator) -> str:
        with pytest.raises(UserError) as caught:
            train(new_run(config, comm), comm)
        return str(caught.value)

    said = set(run_world(2, rank))
    assert len(said) == 1 and f"--dashboard {taken} cannot be opened (Address already in use)" in said.pop()
    assert list(tmp_path.iterdir()) == [], "no folder of a run that came to nothing"


@pytest.mark.parametrize("address", ["192.0.2.1:8080", "no.such.host.invalid:8080"])
def test_an_address_of_another_host_is_the_users_mistake(digits: Path, tmp_path: Path, address: str) -> None:
    run = new_run(settings(digits, **flags(tmp_path, dashboard=address)), COMM)
    with pytest.raises(UserError, match=f"--dashboard {address} cannot be opened"):
        train(run, COMM)


def test_a_run_that_goes_on_does_without_a_taken_port(
    digits: Path, tmp_path: Path, taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    first = new_run(settings(digits, **flags(tmp_path, max_steps=1)), COMM)
    train(first, COMM)
    given = {"dashboard": str(taken)}
    train(resumed_run(str(first.folder), given, COMM), COMM)
    assert f"--dashboard {taken} cannot be opened" in caplog.text
    assert "the run goes on without it" in caplog.text


def test_the_page_ends_with_a_run_that_fails(
    digits: Path, tmp_path: Path, at_the_end: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(digits, **flags(tmp_path, dashboard="0", weights=str(tmp_path / "absent.pt")))
    with pytest.raises(UserError):
        train(new_run(config, COMM), COMM)
    assert json.loads(at_the_end["api/now"])["phase"] == "preparing"
