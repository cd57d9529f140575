"""Tables that survive a resume, checkpoints that never stop a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from horovod_yolo.checkpoint import checkpointer as checkpoints
from horovod_yolo.checkpoint import resume, store
from horovod_yolo.checkpoint.checkpointer import Checkpointer
from horovod_yolo.checkpoint.state import EarlyStopping, Progress, training_state
from horovod_yolo.core.errors import UnwrittenError
from horovod_yolo.report.finished import read_rows
from horovod_yolo.telemetry.csv_log import (
    CsvFile,
    EpochLog,
    StepLog,
    step_columns,
)
from horovod_yolo.telemetry.logger import Axis, LoggedRun, Point, Sent
from horovod_yolo.telemetry.tensorboard import TensorBoardLogger
from horovod_yolo.training.events import EpochReport, RunStart, StepReport, StepResult
from horovod_yolo.training.schedule import Rates, Schedule

COLUMNS = ("step", "loss", "lr")


@pytest.fixture
def table(tmp_path: Path) -> CsvFile:
    table = CsvFile(tmp_path / "steps.csv", COLUMNS)
    table.keep_below(0)
    for step in range(1, 6):
        table.append({"step": step, "loss": step / 3, "lr": 1e-5})
    return table


def steps_in(table: CsvFile) -> list[float]:
    return [row["step"] for row in read_rows(table.path)]


def test_a_table_starts_with_its_columns(tmp_path: Path) -> None:
    table = CsvFile(tmp_path / "new.csv", COLUMNS)
    table.keep_below(7)
    assert table.path.read_text() == "step,loss,lr\n"


def test_numbers_keep_all_their_digits(table: CsvFile) -> None:
    assert read_rows(table.path)[1] == {"step": 2.0, "loss": 2 / 3, "lr": 1e-5}


@pytest.mark.parametrize(
    ("limit", "left"), [(0, []), (4, [1, 2, 3]), (6, [1, 2, 3, 4, 5]), (100, [1, 2, 3, 4, 5])]
)
def test_rows_the_checkpoint_does_not_know_go(table: CsvFile, limit: int, left: list[int]) -> None:
    before = table.path.read_text().splitlines()
    table.keep_below(limit)
    assert steps_in(table) == left
    assert table.path.read_text().splitlines() == before[: len(left) + 1]
    table.append({"step": limit, "loss": 0, "lr": 0})
    assert steps_in(table) == [*left, limit]


@pytest.mark.parametrize(
    "torn", [b"3", b"3,0.1", b"\0\0\0\0", b"\xff\xfe,1,2", b"x,1,2", b"", b"\xc2\xb2,1,2"]
)
def test_what_a_power_cut_left_goes(table: CsvFile, torn: bytes) -> None:
    with table.path.open("ab") as file:
        file.write(torn)
    table.keep_below(5)
    assert steps_in(table) == [1, 2, 3, 4]


def test_a_disk_that_refuses_a_row_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    full = CsvFile(Path("/dev/full"), COLUMNS)
    for step in range(3):
        full.append({"step": step, "loss": 0, "lr": 0})
    full.close()
    full.close()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "/dev/full: No space left on device; what belongs there waits in memory for the disk",
        "/dev/full: No space left on device; its last 3 entries are lost",
    ]


def test_refused_rows_are_written_later(table: CsvFile, caplog: pytest.LogCaptureFixture) -> None:
    """Over what a write left that a disk took in half."""
    before = table.path.read_bytes()
    elsewhere = table.path.with_name("away.csv")
    table.path.rename(elsewhere)
    table.path.mkdir()
    for step in (6, 7):
        table.append({"step": step, "loss": 0, "lr": 0})
    table.path.rmdir()
    elsewhere.rename(table.path)
    with table.path.open("ab") as file:
        file.write(b"6,0")
    table.append({"step": 8, "loss": 0, "lr": 0})
    assert table.path.read_bytes() == before + b"6,0,0\n7,0,0\n8,0,0\n"
    assert "written again, nothing is lost" in caplog.text


def board(folder: Path, step: int = 0, epochs: int = 0) -> tuple[TensorBoardLogger, Sent]:
    logger = TensorBoardLogger()
    return logger, logger.open(LoggedRun("u", "", folder, {"lr0": 0.01}, step, epochs))


def points(axis: Axis, *numbers: int) -> list[Point]:
    values = {"images_per_s": 2.5} if axis == "epoch" else {"step/lr": 0.5}
    return [Point(axis, number, 1e9 + number, values) for number in numbers]


def scalars(folder: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_reads_its_events(tmp_path: Path) -> None:
    logger, sent = board(tmp_path)
    assert sent == Sent("")
    (events,) = tmp_path.glob("events*")
    aside = events.rename(tmp_path / "aside")
    events.mkdir()  # a disk that refuses
    logger.send(points("step", 1, 2))
    events.rmdir()
    aside.rename(events)
    logger.send(points("epoch", 0))
    logger.close()
    assert scalars(tmp_path) == {"step/lr": [1, 2], "images_per_s": [0]}


def test_tensorboard_has_every_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    """Also where a kill cut off a record."""
    logger, _ = board(tmp_path)
    logger.send(points("step", 1, 2, 3))
    logger.send(points("epoch", 0))
    logger.close()
    (events,) = tmp_path.glob("events*")
    events.write_bytes(events.read_bytes()[:-3])
    again, sent = board(tmp_path, step=2, epochs=1)
    assert sent == Sent("", 3, -1)
    again.send([*points("epoch", 0), *points("step", 4)])
    again.close()
    assert scalars(tmp_path) == {"step/lr": [1, 2, 3, 4], "images_per_s": [0]}


def test_tensorboard_forgets_another_run_in_the_folder(tmp_path: Path) -> None:
    logger, _ = board(tmp_path)
    logger.send(points("step", 1, 2, 3))
    logger.close()
    other, sent = board(tmp_path)
    assert sent == Sent("")
    other.send(points("step", 1, 2))
    other.close()
    assert scalars(tmp_path) == {"step/lr": [1, 2]}


TERMS = ("box", "obj", "cls")
LOSSES = dict(zip(TERMS, (0.1, 0.2, 0.3), strict=True))


def start(step: int = 0, epoch: int = 0) -> RunStart:
    schedule = Schedule(
        epochs=9, batches_per_epoch=1, accumulate=1, lr0=0.01, lrf=0.1, cosine=False, momentum=0.9,
        warmup_epochs=0.0, warmup_momentum=0.8, warmup_bias_lr=0.1,
    )  # fmt: skip
    return RunStart(step, epoch, epoch, schedule, TERMS)


def step_report(step: int) -> StepReport:
    result = StepResult(LOSSES, 16, 4.0, False, digest=-2)
    return StepReport(step, 1, Rates(lr=0.01, bias_lr=0.05, momentum=0.9, beta1=0.9), result)


def test_the_steps_of_a_run(tmp_path: Path) -> None:
    log = StepLog(tmp_path)
    log.on_start(start())
    log.on_step(step_report(1))
    header, row = (tmp_path / "steps.csv").read_text().splitlines()
    assert header == ",".join(step_columns(TERMS))
    assert header == "step,epoch,images,lr,box_loss,obj_loss,cls_loss,grad_norm,digest"
    assert row == "1,1,16,0.01,0.1,0.2,0.3,4.0,0xfffffffffffffffe"


def test_a_table_of_steps_that_began_without_digests_goes_on_without_them(tmp_path: Path) -> None:
    before = f"{','.join(step_columns(TERMS)[:-1])}\n1,1,16,0.01,0.1,0.2,0.3,4.0\n"
    (tmp_path / "steps.csv").write_text(before)
    log = StepLog(tmp_path)
    log.on_start(start(step=1))
    log.on_step(step_report(2))
    assert (tmp_path / "steps.csv").read_text() == f"{before}2,1,16,0.01,0.1,0.2,0.3,4.0\n"


def epoch_report(epoch: int) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        losses=LOSSES,
        evaluation=None,
        rates=Rates(lr=0.01, bias_lr=0.05, momentum=0.9, beta1=0.9),
        images=100,
        seconds=4.0,
        data_wait_s=0.5,
        comm_wait_s=0.25,
        best=False,
    )


def test_an_epoch_without_validation_leaves_cells_empty(tmp_path: Path) -> None:
    log = EpochLog(tmp_path)
    log.on_start(start())
    log.on_epoch(epoch_report(3))
    log.on_end({})
    assert (
        (tmp_path / "results.csv")
        .read_text()
        .startswith(
            "epoch,train/box_loss,train/obj_loss,train/cls_loss,metrics/precision,metrics/recall,metrics/mAP_0.5,"
            "metrics/mAP_0.5:0.95,val/box_loss,val/obj_loss,val/cls_loss,x/lr0,x/lr1,x/lr2,images_per_s,data_wait_s,"
            "comm_wait_s\n"
        )
    )
    (row,) = read_rows(tmp_path / "results.csv")
    assert not any(name.startswith(("metrics/", "val/")) for name in row)
    assert (row["epoch"], row["train/obj_loss"], row["images_per_s"]) == (3, 0.2, 25)
    assert (row["x/lr0"], row["x/lr1"], row["x/lr2"]) == (0.05, 0.01, 0.01)  # YOLOv5's order: biases first


def make_state(step: int, epoch: int = 0, batch: int = 1) -> dict[str, Any]:
    return training_state(
        model={"w": torch.full((3,), float(step))},
        ema={"weights": {"w": torch.full((3,), float(-step))}, "updates": step},
        optimizer={"state": {0: {"m": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        scaler={},
        progress=Progress(epoch=epoch, batch=batch, step=step),
        early_stopping=EarlyStopping(),
        metrics={},
        config={},
        model_name="yolov5n",
        variant={},
        names=("a",),
    )


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "exp" / "weights"


def test_commits_reach_the_disk_in_order(weights: Path) -> None:
    checkpointer = Checkpointer(weights, save_period=-1)
    for step in range(1, 5):
        checkpointer.on_commit(make_state(step), best=step == 2)
    checkpointer.on_end({})
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "last.1.pt", "last.2.pt", "last.pt"]
    assert [store.read(path)["step"] for path in resume.generations(weights)] == [4, 3, 2]
    assert store.read(weights / "best.pt")["step"] == 2


def test_training_may_go_on_while_the_file_is_written(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer, state = Checkpointer(weights, save_period=-1), make_state(1)
    checkpointer.on_commit(state, best=True)
    for tensor in (state["model"]["w"], state["ema"]["weights"]["w"], state["optimizer"]["state"][0]["m"]):
        tensor.fill_(99.0)
    state["optimizer"]["param_groups"][0]["lr"] = 99.0
    checkpointer.on_end({})
    saved = store.read(weights / "last.pt")
    assert saved["model"]["w"].tolist() == [1.0] * 3
    assert saved["optimizer"] == {
        "state": {0: {"m": pytest.approx(torch.ones(2))}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }


def test_every_so_many_epochs_a_checkpoint_is_kept(weights: Path) -> None:
    checkpointer = Checkpointer(weights, save_period=2)
    for epoch, batch in ((0, 3), (1, 0), (1, 2), (2, 0), (2, 4), (3, 0), (4, 0)):
        checkpointer.on_commit(make_state(10 * epoch + batch, epoch, batch), best=False)
    checkpointer.on_end({})
    kept = {path.name: store.read(path)["step"] for path in weights.glob("epoch*.pt")}
    assert kept == {"epoch2.pt": 20, "epoch4.pt": 40}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def broken(weights: Path) -> Path:
    """A disk that takes nothing: a file stands where the folder of the weights should be."""
    weights.parent.mkdir()
    weights.write_text("")
    return weights


def test_a_disk_that_refuses_a_checkpoint_does_not_hold_training_up(
    broken: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each commit takes the place of the one that waits for its next try, which would last an hour."""
    monkeypatch.setattr(checkpoints, "PAUSES_S", (3600.0,))
    monkeypatch.setattr(checkpoints, "WARNING_EVERY_S", 0.0)
    checkpointer = Checkpointer(broken, save_period=1)
    for step in (1, 2, 3):
        checkpointer.on_commit(make_state(step), best=step == 2)
        wait_until(lambda step=step: f"commits failed in a row: {step})" in caplog.text)
    broken.unlink()
    checkpointer.on_commit(make_state(4), best=False)
    checkpointer.on_end({})
    assert [store.read(broken / name)["step"] for name in ("last.pt", "best.pt")] == [4, 2]
    assert checkpointer.saved
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith(f"CHECKPOINT NOT WRITTEN to {broken}: Not a directory (last.pt; commits failed")
    assert "Not a directory (best.pt, last.pt; commits" in said[2]
    assert said[3:] == [f"checkpoints are written again to {broken}, after 3 failed"]


def test_a_refused_write_is_tried_again_without_a_further_commit(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "PAUSES_S", (0.01,) * 1000)
    checkpointer = Checkpointer(broken, save_period=-1)
    checkpointer.on_commit(make_state(1), best=True)
    time.sleep(0.05)
    assert not checkpointer.saved
    broken.unlink()
    checkpointer.on_end({})
    assert checkpointer.saved and store.read(broken / "last.pt")["step"] == 1


def test_the_end_says_that_the_last_checkpoint_is_missing(
    broken: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoints, "PAUSES_S", (0.01,))
    checkpointer = Checkpointer(broken, save_period=1)
    checkpointer.on_commit(make_state(5, epoch=1, batch=0), best=True)
    checkpointer.on_commit(make_state(9, epoch=2, batch=0), best=False)
    with pytest.raises(UnwrittenError, match=r"its best\.pt and epoch2\.pt and last\.pt could not"):
        checkpointer.on_end({})
    assert not checkpointer.saved
    assert "CHECKPOINT LOST: epoch1.pt" in caplog.text


def test_the_commit_of_a_stop_is_written_however_soon_it_comes(weights: Path) -> None:
    checkpointer = Checkpointer(weights, save_period=-1, least_seconds=3600.0)
    checkpointer.on_commit(make_state(1), best=False)
    assert not checkpointer.saved
    checkpointer.on_commit({**make_state(2), "stopped": True}, best=False)
    checkpointer.wait()
    assert checkpointer.saved and store.read(weights / "last.pt")["step"] == 2


def test_what_is_damaged_does_not_push_out_what_is_whole(weights: Path) -> None:
    """Resumed from the oldest generation, as the two newer ones are damaged."""
    weights.mkdir(parents=True)
    for step in (1, 2, 3):
        store.write_rotating(weights / "last.pt", store.serialise(make_state(step)), resume.KEEP)
    for name in ("last.pt", "last.1.pt"):
        (weights / name).unlink()
        (weights / name).write_bytes(b"damaged")
    (weights / ".last.pt.0123abcd.tmp").write_bytes(b"of a killed run")
    checkpointer = Checkpointer(weights, save_period=-1)
    checkpointer.on_start(None)
    for step in (2, 3):
        checkpointer.on_commit(make_state(step), best=False)
        checkpointer.wait()
        assert store.read(weights / "last.2.pt")["step"] == 1
    checkpointer.on_end({})
    assert [store.read(path)["step"] for path in resume.generations(weights)] == [3, 2, 1]
    assert sorted(path.name for path in weights.glob("*.damaged")) == ["last.1.pt.damaged", "last.pt.damaged"]
    assert not list(weights.glob(".*"))


def test_a_fault_of_ours_is_not_taken_for_a_full_disk(weights: Path) -> None:
    checkpointer = Checkpointer(weights, save_period=-1)
    checkpointer.on_commit({**make_state(1), "bad": lambda: os}, best=False)
    with pytest.raises(Exception, match="pickle"):
        checkpointer.on_end({})
