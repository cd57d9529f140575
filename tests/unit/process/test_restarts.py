"""What ranks leave in the folder of torchrun's agent, and whom it concerns."""

from __future__ import annotations

from pathlib import Path

import pytest

from horovod_yolo.process import restarts
from horovod_yolo.process.restarts import End


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its folder, as a rank of its first attempt is told."""
    folder = tmp_path / "torchelastic_a1" / "job_b2"
    (folder / "attempt_0" / "1").mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "attempt_0" / "1" / "error.json"))
    return folder


def test_ranks_end_like_those_before_them(agent: Path) -> None:
    assert restarts.earlier_end(0) is None
    end = End(2, "error: d.yaml: not there")
    restarts.leave_end(end)
    assert restarts.earlier_end(0) == restarts.earlier_end(3) == end


def test_ranks_that_the_agent_has_ended_itself_have_successors(agent: Path) -> None:
    """It counts restarts after failures, and not those for a host that joins."""
    restarts.leave_end(End(3, "stopped", above=1))
    assert restarts.earlier_end(2) == End(3, "stopped", above=1)
    assert restarts.earlier_end(1) is None
    assert restarts.earlier_end(2) is None  # those went on, and a later failure is another matter


def test_the_run_of_each_place_in_a_script(agent: Path, tmp_path: Path) -> None:
    assert restarts.noted_run(1) == ""
    restarts.note_run(1, tmp_path / "exp")
    restarts.note_run(2, tmp_path / "a\nb")
    assert restarts.noted_run(1) == str(tmp_path / "exp")
    assert restarts.noted_run(2) == str(tmp_path / "a\nb")


@pytest.mark.parametrize("told", ["", "error.json", "/dev/null", "/a/attempt_0/1/error.json"])
def test_elsewhere_nothing_is_left(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", told)
    assert restarts.agents_folder() is None
    restarts.leave_end(End(2, "x"))
    restarts.note_run(1, Path("exp"))
    assert restarts.earlier_end(1) is None and restarts.noted_run(1) == ""
