"""A logger gets every row once, whatever happens to it, and training waits for none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.telemetry import delivery
from horovod_yolo.telemetry.csv_log import EpochLog, StepLog
from horovod_yolo.telemetry.delivery import Delivery
from horovod_yolo.telemetry.logger import End, LoggedRun, Logger, Point, Sent
from horovod_yolo.telemetry.redaction import redacted
from horovod_yolo.telemetry.tail import Tail
from horovod_yolo.training.events import SharesReport
from tests.unit.telemetry.test_callbacks import epoch_report, start, step_report


class Server:
    """Keeps rows in memory; is down, hangs, or takes rows without an answer."""

    name = "server"
    confirms = True

    def __init__(self) -> None:
        self.rows: list[tuple[str, int]] = []
        self.values: list[Mapping[str, float]] = []
        self.ended: list[str] = []
        self.known: list[str] = []
        self.down = self.answers_are_lost = False
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.calls = 0

    def open(self, run: LoggedRun) -> Sent:
        self._serve()
        self.known.append(run.known_id)
        last = {axis: max((n for a, n in self.rows if a == axis), default=0) for axis in ("step",)}
        epoch = max((n for a, n in self.rows if a == "epoch"), default=-1)
        return Sent("run-1", last["step"], epoch)

    def send(self, points: Sequence[Point]) -> None:
        self._serve()
        self.rows += [(point.axis, point.number) for point in points]
        self.values += [point.values for point in points]
        if self.answers_are_lost:
            raise TimeoutError("no answer from http://me:hunter2@host")

    def finish(self, end: End, results: Mapping[str, Any]) -> None:
        self._serve()
        self.ended.append(end)

    def close(self) -> None:
        """Nothing is open."""

    def _serve(self) -> None:
        self.calls += 1
        self.goes_on.wait()
        if self.down:
            raise ConnectionError("refused by http://me:hunter2@host")


class Watched:
    """A run's tables and its delivery to a logger."""

    def __init__(self, folder: Path, logger: Logger, step: int = 0, epoch: int = 0) -> None:
        self.ids = {logger.name: ""}
        self.delivery = Delivery(logger, folder, {}, "u", self.ids)
        self._all = [StepLog(folder), EpochLog(folder), self.delivery]
        self.step, self.epoch = step, epoch
        for each in self._all:
            each.on_start(start(step, epoch))

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step += 1
            for each in self._all:
                each.on_step(step_report(self.step))

    def epochs(self) -> None:
        for each in self._all:
            each.on_epoch(epoch_report(self.epoch))
        self.epoch += 1

    def end(self) -> None:
        self.delivery.on_end({})
        self.delivery.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN", 0.01)
    monkeypatch.setattr(delivery, "LONGEST_PAUSE_S", 0.05)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.goes_on.set()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rows(steps: int, epochs: int) -> list[tuple[str, int]]:
    return [("epoch", n) for n in range(epochs)] + [("step", n) for n in range(1, steps + 1)]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_every_row_arrives_once(tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    run = Watched(tmp_path, server)
    run.steps(250)  # more than are sent at once
    run.delivery.on_shares(SharesReport(251, (3, 1), (0.1, 0.3)))
    run.steps(2)
    run.epochs()
    run.end()
    assert sorted(server.rows) == rows(252, 1)
    of_steps = [values for values in server.values if "step/lr" in values]
    losses = {"step/box_loss": 0.1, "step/obj_loss": 0.2, "step/cls_loss": 0.3}
    others = {"step/epoch": 1.0, "step/images": 16.0, "step/lr": 0.01, "step/grad_norm": 4.0}
    assert of_steps[0] == losses | others
    assert of_steps[250]["slices/rank0"] == 3.0 and "slices/rank0" not in of_steps[251]
    assert server.ended == ["finished"] and run.ids == {"server": "run-1"} and not said(caplog)


def test_a_server_that_is_down_costs_one_warning_and_gets_all_when_it_is_back(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    run = Watched(tmp_path, server)
    run.steps(3)
    until(lambda: len(server.rows) == 3)
    server.down = True
    run.steps(3)
    until(lambda: bool(said(caplog)))
    before = server.calls
    until(lambda: server.calls > before + 3)  # it is tried again and again
    run.epochs()
    server.down = False
    until(lambda: len(server.rows) == 7)
    run.steps(1)
    run.end()
    assert sorted(server.rows) == rows(7, 1)
    assert said(caplog) == [
        "server: refused by http://***@host; "
        "training goes on, and what it misses is sent when it works again",
        "server: works again; what it has missed was sent from the tables",
    ]


def test_what_arrived_though_the_answer_was_lost_is_not_sent_again(tmp_path: Path, server: Server) -> None:
    run = Watched(tmp_path, server)
    server.answers_are_lost = True
    run.steps(4)
    until(lambda: len(server.rows) >= 4)
    server.answers_are_lost = False
    run.steps(2)
    run.end()
    assert sorted(server.rows) == rows(6, 0)


def test_a_server_that_hangs_delays_neither_a_step_nor_the_end(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "SECONDS_AT_THE_END", 0.2)
    run = Watched(tmp_path, server)
    run.steps(2)
    until(lambda: len(server.rows) == 2)
    server.goes_on.clear()
    run.steps(1000)
    run.epochs()
    run.end()
    missing = "1000 steps and 1 epochs did not arrive (it does not answer in time)"
    assert said(caplog) == [f"server: {missing}; --resume {tmp_path} sends them"]
    server.goes_on.set()
    run.delivery._thread.join(10)
    assert len(server.rows) <= 102  # what was under way, and no more: another job may be at it
    server.ended.clear()
    Watched(tmp_path, server, step=1002, epoch=1).end()
    assert sorted(server.rows) == rows(1002, 1) and server.ended == ["finished"]


def test_a_server_that_is_down_to_the_end(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.down = True
    run = Watched(tmp_path, server)
    run.steps(3)
    until(lambda: bool(said(caplog)))
    run.end()
    assert said(caplog)[1:] == [
        "server: 3 steps and 0 epochs did not arrive (refused by http://***@host); "
        f"--resume {tmp_path} sends them"
    ]


def test_resume_sends_no_step_twice(tmp_path: Path, server: Server) -> None:
    """The checkpoint is of step 4; steps 5 to 7 were sent before the kill, and are made again."""
    killed = Watched(tmp_path, server)
    killed.steps(7)
    until(lambda: len(server.rows) == 7)
    killed.delivery.close()
    assert server.ended == ["broken off"]
    again = Watched(tmp_path, server, step=4)
    again.steps(5)
    again.end()
    assert sorted(server.rows) == rows(9, 0)


def test_a_run_that_is_asked_to_stop(tmp_path: Path, server: Server) -> None:
    run = Watched(tmp_path, server)
    run.steps(1)
    run.delivery.on_commit({"stopped": True}, best=False)
    run.delivery.close()
    assert server.ended == ["stopped"]


def test_a_row_that_is_still_being_written_waits(tmp_path: Path) -> None:
    table = tmp_path / "steps.csv"
    tail = Tail(table, "step", "", {2: 7.0})
    tail.restart(0)
    assert tail.next(9) == []
    table.write_text("step,lr,digest\n1,0.5,0x1\n2,0.")
    assert [(p.number, p.values) for p in tail.next(9)] == [(1, {"lr": 0.5})]
    with table.open("a") as file:
        file.write("25,\n3,,\n4,nan,\n")
    second, third = tail.next(2)
    assert (second.number, second.values, second.time) == (2, {"lr": 0.25}, 7.0)
    assert third.values == {}
    (fourth,) = tail.next(9)
    assert fourth.values["lr"] != fourth.values["lr"]
    tail.restart(3)
    assert [point.number for point in tail.next(9)] == [4]


def test_secrets_are_hidden() -> None:
    environment = {
        "MLFLOW_TRACKING_TOKEN": "abc123",
        "WANDB_API_KEY": "k" * 40,
        "MY_PASSWORD": "no",
        "HOME": "/h",
    }
    text = f"PUT https://me:pa%40ss@host:5000/api (abc123, {'k' * 40}) in /h, no doubt"
    assert redacted(text, environment) == "PUT https://***@host:5000/api (***, ***) in /h, no doubt"
