"""The page's server: what it answers, to whom, and that nobody who asks is in the way of the training."""

from __future__ import annotations

import http.client
import json
import logging
import math
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.core.address import Address
from horovod_yolo.telemetry import dashboard as dashboards
from horovod_yolo.telemetry.csv_log import EpochLog, StepLog
from horovod_yolo.telemetry.dashboard import Dashboard
from horovod_yolo.telemetry.live import MOST_POINTS, LiveRun
from horovod_yolo.training.events import PlanReport, RankTime, RunStart, StepReport, StepResult
from horovod_yolo.training.schedule import Rates, Schedule

from .test_callbacks import epoch_report

FACTS = {"run": "runs/a", "model": "m", "version": "1", "ranks": 2, "hosts": ["a", "b"], "global_batch": 16}
RATES = Rates(lr=0.01, bias_lr=0.05, momentum=0.9, beta1=0.9)


def start(step: int = 0, epoch: int = 0, batch: int = 0) -> RunStart:
    schedule = Schedule(
        epochs=9, batches_per_epoch=10, accumulate=2, lr0=0.01, lrf=0.1, cosine=False, momentum=0.9,
        warmup_epochs=0.0, warmup_momentum=0.8, warmup_bias_lr=0.1,
    )  # fmt: skip
    return RunStart(step, epoch, epoch, schedule, ("box",), batch)


def step(number: int, epoch: int = 0, loss: float = 0.5, **more: Any) -> StepReport:
    given = {"grad_norm": 4.0, "skipped": False, **more}
    return StepReport(number, epoch, RATES, StepResult({"box": loss}, 16, **given))


def live(folder: Path) -> LiveRun:
    return LiveRun(folder, {**FACTS}, lambda: 12.5)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[LiveRun, Dashboard]]:
    run = live(tmp_path)
    server = Dashboard(Address("127.0.0.1", 0), run)
    yield run, server
    server.close()


def asked(
    server: Dashboard, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=10)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def now(server: Dashboard) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(asked(server, "/api/now")[2])
    return answer


def test_a_run_is_followed_through_steps_and_epochs(served: tuple[LiveRun, Dashboard]) -> None:
    run, server = served
    assert now(server)["phase"] == "preparing"
    run.on_start(start())
    told = (RankTime(10, 2.0, 0.5, 0.0), RankTime(6, 2.0, 0.0, 1.0))
    for number in range(1, 5):
        run.on_step(step(number, ranks=told, skipped=number == 2))
    found = now(server)
    assert (found["phase"], found["batches"], found["step"], found["skipped"]) == ("training", [8, 10], 4, 1)
    assert found["images"] == 64 and found["images_per_s"] > 0 and found["checkpoint_at"] == 12.5
    assert found["ranks"] == [
        {"host": "a", "images_per_s": 5.0, "data": 0.25, "ranks": 0.0},
        {"host": "b", "images_per_s": 3.0, "data": 0.0, "ranks": 0.5},
    ]
    run.on_step(step(5))
    assert now(server)["phase"] == "validating"
    run.on_epoch(epoch_report(0))
    assert (now(server)["epoch"], now(server)["batches"]) == (1, [0, 10])
    curves = json.loads(asked(server, "/api/curves")[2])
    assert [row["step"] for row in curves["steps"]] == [1, 2, 3, 4, 5] and "digest" not in curves["steps"][0]
    assert [row["epoch"] for row in curves["epochs"]] == [1]


def test_numbers_that_are_none_are_null(served: tuple[LiveRun, Dashboard]) -> None:
    run, server = served
    run.on_start(start())
    run.on_step(step(1, loss=math.nan, grad_norm=math.inf))
    assert now(server)["loss"] == {"box": None}
    (row,) = json.loads(asked(server, "/api/curves")[2])["steps"]
    assert row["box_loss"] is None and row["grad_norm"] is None
    text = asked(server, "/metrics")[2].decode()
    assert 'horovod_yolo_loss{term="box"} NaN' in text and "horovod_yolo_gradient_norm +Inf" in text


def test_a_resumed_run_goes_on_with_its_curves(tmp_path: Path) -> None:
    steps, epochs, first = StepLog(tmp_path), EpochLog(tmp_path), start()
    for log in (steps, epochs):
        log.on_start(first)
    count = 3 * MOST_POINTS
    for number in range(1, count + 1):
        steps.on_step(step(number))
    for epoch in range(3):
        epochs.on_epoch(epoch_report(epoch))
    run = live(tmp_path)
    run.on_start(start(count - 5, 3, batch=4))
    shown = [row["step"] for row in run.curves()["steps"]]
    assert MOST_POINTS / 4 < len(shown) <= MOST_POINTS and shown == sorted(set(shown))
    assert shown[0] == 1 and count - 50 < shown[-1] <= count - 5, "the checkpoint knows no later one"
    assert [row["epoch"] for row in run.curves()["epochs"]] == [1, 2, 3]
    run.on_step(step(count - 4, 3))
    assert run.now().batches == (6, 10)


@pytest.mark.parametrize("content", [None, b"", b"step,epoch\n1,", b"\xff\xff\n\xff\n"])
def test_a_table_that_is_not_readable_is_done_without(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "steps.csv").write_bytes(content)
    run = live(tmp_path)
    run.on_start(start(step=7, epoch=1))
    assert run.curves() == {"steps": [], "every": 1, "epochs": []}


def test_many_steps_take_no_more_memory(tmp_path: Path) -> None:
    run = live(tmp_path)
    run.on_start(start())
    for epoch in range(1000):
        for number in range(1, 6):
            run.on_step(step(5 * epoch + number, epoch))
    curves = run.curves()
    assert len(curves["steps"]) <= MOST_POINTS and curves["every"] == 16
    assert [row["step"] for row in curves["steps"]][:3] == [1, 17, 33]


def test_the_log_is_shown(served: tuple[LiveRun, Dashboard]) -> None:
    run, server = served
    logger = logging.getLogger("horovod_yolo.test")
    logger.addHandler(run.tail)
    try:
        logger.warning("a %s\n<script>", "b")
        logger.debug("unseen")
    finally:
        logger.removeHandler(run.tail)
    (line,) = now(server)["log"]
    assert (line["level"], line["text"]) == ("warning", "a b\\x0a<script>")


def test_the_page_may_use_nothing_but_itself(served: tuple[LiveRun, Dashboard]) -> None:
    status, headers, page = asked(served[1], "/?x=1")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; connect-src 'self'; script-src")
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    text = page.decode()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert "innerHTML" not in text


@pytest.mark.parametrize(
    "path", ["/favicon.ico", "/../../etc/passwd", "/api/", "/%2e%2e/x", "*", "/metrics/"]
)
def test_there_is_nothing_else(served: tuple[LiveRun, Dashboard], path: str) -> None:
    status, _, content = asked(served[1], path)
    assert (status, content) == (404, b"404 Not Found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_it_can_only_be_read(served: tuple[LiveRun, Dashboard], method: str) -> None:
    status, headers, _ = asked(served[1], "/metrics", method)
    assert status == 405 and headers["Allow"] == "GET, HEAD"


def test_a_head_has_no_body(served: tuple[LiveRun, Dashboard]) -> None:
    status, headers, content = asked(served[1], "/metrics", "HEAD")
    assert status == 200 and int(headers["Content-Length"]) > 1000 and content == b""


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9000", 200),  # the end of a tunnel
        ("127.0.0.1", 200),
        ("10.1.2.3:8080", 200),
        ("[::1]:8080", 200),
        (socket.gethostname(), 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("[::1].evil.example", 403),
        ("", 403),
    ],
)
def test_a_name_of_somebody_else_is_refused(
    served: tuple[LiveRun, Dashboard], host: str, status: int
) -> None:
    """Else his page could let its name lead here, and read."""
    assert asked(served[1], "/metrics", Host=host)[0] == status


def test_the_name_that_was_asked_for_is_answered(tmp_path: Path) -> None:
    server = Dashboard(Address("localhost", 0), live(tmp_path))
    try:
        assert asked(server, "/metrics", Host="LOCALHOST:1")[0] == 200
    finally:
        server.close()


def test_nobody_can_keep_others_out_for_long(
    served: tuple[LiveRun, Dashboard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboards._Handler, "timeout", 0.3)
    server = served[1]
    silent = [
        socket.create_connection(("127.0.0.1", server.address.port), timeout=10)
        for _ in range(dashboards.MOST_CONNECTIONS + 1)
    ]
    try:
        assert silent[-1].recv(1) == b"", "one too many is closed at once"
        assert silent[0].recv(1) == b"", "a silent one after a while"
        for one in silent:
            one.settimeout(10)
            assert one.recv(1) == b""
        assert asked(server, "/metrics")[0] == 200
    finally:
        for one in silent:
            one.close()


def test_a_connection_does_not_outlive_the_run(tmp_path: Path) -> None:
    server = Dashboard(Address("127.0.0.1", 0), live(tmp_path))
    with socket.create_connection(("127.0.0.1", server.address.port), timeout=3) as silent:
        silent.sendall(b"GET /met")
        assert asked(server, "/metrics")[0] == 200  # so the silent one is in a thread by now
        server.close()
        assert silent.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        asked(server, "/metrics")


def test_a_port_is_free_again_at_once(tmp_path: Path) -> None:
    first = Dashboard(Address("127.0.0.1", 0), live(tmp_path))
    with pytest.raises(OSError, match="in use"):
        Dashboard(first.address, live(tmp_path))
    asked(first, "/")
    first.close()
    Dashboard(first.address, live(tmp_path)).close()


def test_another_number_of_epochs_is_gone_by(tmp_path: Path) -> None:
    run = live(tmp_path)
    run.on_start(start())
    assert run.now().epochs == 9
    run.on_plan(PlanReport(1, replace(start().schedule, epochs=4)))
    assert run.now().epochs == 4
