"""wandb's own client: every row is there once, no process stays, and a server that fails costs a warning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.telemetry import delivery, wandb_log
from horovod_yolo.telemetry.logger import LoggedRun, Point, Sent
from horovod_yolo.telemetry.wandb_log import WandbError, WandbLogger, require_key
from tests.helpers.disk import Disk, why_not
from tests.helpers.wandb_files import files_of, rows_in
from tests.helpers.wandb_server import KEY, WandbServer, clients, forget_the_user, serving
from tests.unit.telemetry.test_delivery import Watched, said

no_disk = why_not()
UID = "0123456789abcdef"
SETTINGS: dict[str, str | int | float | bool] = {"hyp.lr0": 0.01, "data": "d", "quad": False}
RESULTS = {"metrics": {"mAP50": 0.5, "recall": None}, "best_epoch": 3, "name": "exp"}


@pytest.fixture(autouse=True)
def nothing_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_the_user(monkeypatch, tmp_path)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
    with serving(monkeypatch) as made:
        yield made


_open: list[WandbLogger] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def opened(folder: Path) -> tuple[WandbLogger, Sent]:
    logger = WandbLogger()
    _open.append(logger)
    return logger, logger.open(LoggedRun(UID, "", folder, SETTINGS, 0, 0))


def points(first: int, last: int) -> list[Point]:
    return [
        Point("step", n, 1e9 + n, {"step/lr": 0.5, "step/loss": float("nan")}) for n in range(first, last + 1)
    ]


def run_folders(folder: Path, uid: str) -> list[Path]:
    """That the client has made; all its links lead somewhere."""
    assert not [path for path in folder.glob("wandb/*") if not path.exists()]
    return list(folder.glob(f"wandb/run-*-{uid}"))


def epoch(number: int) -> Point:
    return Point("epoch", number, 1e9, {"metrics/mAP_0.5:0.95": 0.25})


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90  # the client takes seconds to start
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def client_processes() -> list[psutil.Process]:
    """Of this process, which may have children from other tests."""
    return clients(psutil.Process())


def test_offline_each_job_goes_on_where_the_files_of_the_others_end(tmp_path: Path, offline: None) -> None:
    """The first is let go. The second is killed with all it has started, and has not written everything."""
    first, sent = opened(tmp_path)
    assert sent == Sent(UID, 0, -1)
    first.send(points(1, 3))
    first.send([epoch(0)])
    first.finish("broken off", {})
    first.close()
    assert not client_processes()

    killed, sent = opened(tmp_path)
    assert sent == Sent(UID, 3, 0)
    killed.send(points(4, 400))
    until(lambda: files_of(tmp_path, UID)[-1].stat().st_size > 1 << 15)  # a block; it writes no less
    processes = client_processes()
    processes[-1].suspend()  # the one that writes: what is sent from here on is not in the file
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(killed.send, points(401, 600))
        for process in reversed(processes):
            process.kill()
        processes[0].wait(60)  # the one that answers; on a busy machine its end takes a while
    with pytest.raises(OSError, match="its client's process has ended"):
        rest.result()
    with pytest.raises(OSError, match="its client's process has ended"):
        killed.send(points(601, 601))
    killed.close()

    last, sent = opened(tmp_path)
    assert 3 < sent.step < 600 and sent.epoch == 0  # whole blocks of the file
    last.send(points(sent.step + 1, 600))
    last.finish("finished", RESULTS)
    last.close()

    rows = [row for path in files_of(tmp_path, UID) for row in rows_in(path)]
    steps = [row for row in rows if "step" in row]
    assert [row["step"] for row in steps] == list(range(1, 601))
    assert [row["_step"] for row in rows] == list(range(601))  # wandb's own count never goes back
    assert (steps[6]["step/lr"], steps[6]["step/loss"], steps[6]["_timestamp"]) == (0.5, "NaN", 1e9 + 7)
    (of_epoch,) = [row for row in rows if "epoch" in row]
    assert of_epoch["metrics/mAP_0.5:0.95"] == 0.25


def test_online_the_server_says_what_it_has(tmp_path: Path, server: WandbServer) -> None:
    first, sent = opened(tmp_path)
    first.send(points(1, 150))
    first.send([epoch(0)])
    first.finish("stopped", {})
    run = server.runs[UID]
    assert run.is_preempted and run.exit_codes == [1]
    first.close()
    again, sent = opened(tmp_path)
    assert sent == Sent(UID, 150, 0)
    again.send(points(151, 152))
    again.finish("finished", RESULTS)
    again.close()
    assert [row["step"] for row in run.rows if "step" in row] == list(range(1, 153))
    assert [row["_step"] for row in run.rows] == list(range(153))
    assert run.exit_codes == [1, 0]
    assert (run.summary["results/mAP50"], run.summary["results/best_epoch"]) == (0.5, 3)
    config = {name: entry["value"] for name, entry in json.loads(run.config).items()}
    assert config["hyp.lr0"] == 0.01 and config["quad"] is False
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 3 and not any(KEY.encode() in content for content in kept)
    assert not client_processes()


FULL = """
import sys
from pathlib import Path
from horovod_yolo.telemetry.wandb_log import WandbLogger
from horovod_yolo.telemetry.logger import LoggedRun, Point
logger = WandbLogger()
logger.open(LoggedRun(sys.argv[1], "", Path(sys.argv[2]), {}, 0, 0))
logger.send([Point("step", n, 1e9, {"step/lr": 0.5}) for n in range(1, 601)])
try:
    logger.finish("finished", {})
except Exception as error:
    print(error)
logger.close()
"""


@pytest.mark.skipif(bool(no_disk), reason=f"LOUD SKIP: {no_disk}")
def test_offline_rows_that_a_full_disk_has_refused_are_not_taken_for_kept(
    tmp_path: Path, offline: None
) -> None:
    """The client itself says nothing of it."""
    with Disk(tmp_path / "disk", "100k") as disk:
        told = tmp_path / "told"
        job = disk.start([sys.executable, "-c", FULL, UID, disk.folder], told)
        assert job.wait() == 0
    assert told.read_text() == "its file lacks the last rows, as on a full disk\n"


RANK = """
import os, signal, sys
from pathlib import Path
from horovod_yolo.telemetry.logger import LoggedRun, Point
from horovod_yolo.telemetry.wandb_log import WandbLogger
logger = WandbLogger()
logger.open(LoggedRun(sys.argv[1], "", Path(sys.argv[2]), {}, 0, 0))
logger.send([Point("step", 1, 1e9, {"step/lr": 0.5})])
if os.fork() == 0:  # a data worker holds the pipes of its rank
    signal.pause()
print("sent", flush=True)
signal.pause()
"""


def test_a_rank_that_is_killed_leaves_no_process_and_loses_no_row(tmp_path: Path, offline: None) -> None:
    words = [sys.executable, "-c", RANK, UID, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as rank:
        assert rank.stdout is not None and rank.stdout.readline() == b"sent\n"
        children = psutil.Process(rank.pid).children(recursive=True)
        client = [process for process in children if os.getsid(process.pid) != os.getsid(rank.pid)]
        assert len(client) == 2 and len(children) == 3  # the client, its program that uploads, the worker
        assert client[0].ppid() == rank.pid
        client[0].terminate()  # a batch system tells all processes of a job
        rank.kill()
    _, left = psutil.wait_procs(client, 10)
    os.killpg(rank.pid, signal.SIGKILL)  # the worker
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE], left
    (path,) = files_of(tmp_path, UID)
    assert [row["step"] for row in rows_in(path)] == [1]
    assert not (tmp_path / "home").exists()  # nor a file in the user's


def test_a_missing_key_is_said_before_anything_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="there is no API key") as caught:
        require_key()
    assert "set WANDB_API_KEY where rank 0 runs, or set WANDB_MODE=offline" in str(caught.value)
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    with pytest.raises(UserError, match="WANDB_API_KEY invalid") as caught:
        require_key()
    assert "hunter2" not in str(caught.value)
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(f"machine wandb.example login user password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")  # nothing is asked there
    require_key()


@pytest.mark.parametrize(
    ("program", "said"),
    [("none", "No such file"), ("/bin/false", "has ended"), ("/bin/echo", "has ended|says b'-c import json")],
)
def test_a_client_that_does_not_start_is_said_too_and_nothing_of_it_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, said: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(UserError, match=f"^--log-to wandb: .*({said}).*put that right where rank 0 runs"):
        require_key()
    assert list(tmp_path.iterdir()) == []
    assert not client_processes()


def test_the_users_own_patience_counts(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client answers later than in no time at all."""
    monkeypatch.setattr(wandb_log, "SECONDS_TO_ANSWER", 0.0)
    with pytest.raises(TimeoutError, match="does not answer within 0 s"):
        opened(tmp_path)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "90")
    assert opened(tmp_path)[1] == Sent(UID, 0, -1)


def test_without_a_folder_for_temporary_files_it_is_said_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"^--log-to wandb: .*No such file"):
        require_key()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_where_nothing_is_uploaded_there_is_no_need_for_a_key(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    require_key()


def test_disabled_it_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger, _ = opened(tmp_path)
    logger.send(points(1, 2))
    logger.finish("finished", RESULTS)
    assert list(tmp_path.iterdir()) == []


def refuse(server: WandbServer) -> None:
    server.refuses = 401


def fail(server: WandbServer) -> None:
    server.refuses = 500


def hang(server: WandbServer) -> None:
    server.hangs = True


@pytest.mark.parametrize("trouble", [refuse, fail, hang])
def test_a_server_that_does_not_take_it_costs_one_warning_and_no_step(
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[[WandbServer], None],
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN", 0.2)
    monkeypatch.setattr(delivery, "SECONDS_AT_THE_END", 1.0)
    trouble(server)
    run = Watched(tmp_path, WandbLogger())
    began = time.monotonic()
    run.steps(1000)
    assert time.monotonic() - began < 2
    until(lambda: bool(said(caplog)))
    run.epochs()
    run.end()
    run.delivery._thread.join(30)  # which nobody waits for
    first, last = said(caplog)
    assert first.startswith("wandb: Failed to get resume status for run u: ")
    assert first.endswith("; training goes on, and what it misses is sent when it works again")
    assert last.startswith("wandb: not everything has arrived (")
    assert last.endswith(f"; --resume {tmp_path} sends what is missing")


def test_tries_that_fail_leave_no_folders(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = opened(tmp_path)
    first.finish("broken off", {})
    first.close()
    (kept,) = run_folders(tmp_path, UID)  # of an earlier job
    server.refuses = 500
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    for _ in range(2):
        with pytest.raises(WandbError):
            opened(tmp_path)
        _open.pop().close()
    assert run_folders(tmp_path, UID) == [kept]


def test_a_server_that_fails_for_a_while_has_every_row_once(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN", 0.2)
    run = Watched(tmp_path, WandbLogger())
    run.steps(3)
    until(lambda: "u" in server.runs and len(server.runs["u"].rows) == 3)
    server.refuses = 500
    while not said(caplog):
        run.steps(1)
        time.sleep(0.1)
    server.refuses = 0
    until(lambda: len(said(caplog)) == 2)
    run.steps(2)
    run.epochs()
    run.end()
    assert "retrying HTTP 500" in said(caplog)[0]
    assert said(caplog)[1:] == ["wandb: works again; what it has missed was sent from the tables"]
    there = server.runs["u"]
    assert [row["step"] for row in there.rows if "step" in row] == list(range(1, run.step + 1))
    assert there.exit_codes == [0]
    assert len(run_folders(tmp_path, "u")) == 1  # not one for each try
