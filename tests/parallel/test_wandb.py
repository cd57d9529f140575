"""``--log-to wandb`` of real ranks: killed and resumed offline, and a server that never answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers import ranks
from tests.helpers.runs import checkpoint, steps
from tests.helpers.wandb_files import files_of, rows_in
from tests.helpers.wandb_server import KEY, WandbServer, clients, forget_the_user, serving
from tests.parallel.test_loggers import flags, made, until

STEPS = 80  # more than there are until the client is up


@pytest.fixture(autouse=True)
def nothing_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_the_user(monkeypatch, tmp_path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with serving(monkeypatch) as made:
        yield made


def words(data: Path, folder: Path) -> list[str | Path]:
    return [*flags(data, folder)[:-1], "wandb"]


def clients_of(job: ranks.subprocess.Popen[str]) -> list[int]:
    return [process.pid for process in clients(psutil.Process(job.pid))]


@pytest.mark.slow  # a minute: two jobs, and the client beside each; tests/unit has the client alone
def test_every_step_is_logged_once_over_a_kill_and_a_resume(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "runs/exp"
    job = ranks.start([*words(digits, tmp_path / "runs"), "--max-steps", str(STEPS)], 2)
    until(
        lambda: made(run) >= 12 and len(clients_of(job)) >= 2 and len(list(run.glob("wandb/off*"))) == 1, job
    )
    started = clients_of(job)
    assert len(started) == 2  # of rank 0 alone
    first = ranks.kill_ranks(job).output
    ranks.wait_until_gone(started)
    uid = checkpoint(run)["loggers"]["uid"]
    before = logged(run, uid)
    assert before == list(range(1, len(before) + 1)) and len(before) < STEPS

    again = ranks.run(["train.py", "--resume", run, "--log-to", "wandb"], 2)
    assert again.code == 0 and len(files_of(run, uid)) == 2
    assert logged(run, uid) == list(range(1, STEPS + 1))
    for printed in (first, again.output):
        lines = [line for line in printed.splitlines() if "wandb: " in line]
        assert len(lines) <= 1 and all(f"offline; 'wandb sync {run}/wandb' uploads it" in it for it in lines)


def logged(run: Path, uid: str) -> list[int]:
    """The steps in all files of the run."""
    return [row["step"] for file in files_of(run, uid) for row in rows_in(file) if "step" in row]


def test_a_server_that_never_answers_costs_two_lines_and_no_step(
    digits: Path, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    server.hangs = True
    job = ranks.run([*words(digits, tmp_path / "runs"), "--max-steps", "20"], 2)
    run = tmp_path / "runs/exp"
    assert job.code == 0 and len(steps(run)) == 20, job.output
    lines = [line for line in job.output.splitlines() if "wandb: " in line]
    assert len(lines) <= 2 and "not everything has arrived" in lines[-1], job.output
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 4 and not any(KEY.encode() in content for content in kept)
    assert KEY not in job.output


def test_without_a_key_it_is_one_line_and_exit_code_2(digits: Path, tmp_path: Path) -> None:
    job = ranks.run(words(digits, tmp_path / "runs"), 2, "mpirun")
    assert job.code == 2, job.output
    (line,) = [line for line in job.output.splitlines() if "error: " in line]
    assert "--log-to wandb: there is no API key. set WANDB_API_KEY where rank 0 runs, or " in line
    assert "Traceback" not in job.output and list((tmp_path / "runs").iterdir()) == []
