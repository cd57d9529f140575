"""Which exit code counts, and the files that ask ranks to stop."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from horovod_yolo.launch import supervise
from horovod_yolo.launch.elastic import Elastic
from horovod_yolo.launch.hostfile import parse_hosts
from horovod_yolo.launch.plan import LaunchPlan
from horovod_yolo.launch.stop_files import StopFiles


@pytest.mark.parametrize(
    ("launchers", "told", "code"),
    [
        (0, [], 0),
        (1, [], 1),
        (1, [3, 3], 3),
        (1, [2, 143], 2),  # the others are ended then
        (1, [1, 3], 1),
        (1, [137, 3], 1),
    ],
)
def test_the_first_rank_to_leave_tells_why_a_job_ended(launchers: int, told: list[int], code: int) -> None:
    assert supervise._exit_code(launchers, told, elastic=False) == code


@pytest.mark.parametrize(
    ("launchers", "told", "code"),
    [
        (0, [], 0),
        (0, [137], 0),  # went on without that rank
        (0, [3], 0),
        (1, [137, 3], 3),  # too few were left
        (1, [3, 3, 255], 3),  # ssh noticed a lost host after the others had left
        (1, [2, 2], 2),
        (1, [137, 1, 1], 1),
        (1, [3, 1], 1),
        (1, [137], 1),
        (143, [], 143),
    ],
)
def test_an_elastic_job_outlives_ranks(launchers: int, told: list[int], code: int) -> None:
    assert supervise._exit_code(launchers, told, elastic=True) == code


def a_plan(hosts: str, elastic: Elastic | None = None) -> LaunchPlan:
    return LaunchPlan("horovodrun-gloo", "horovodrun", parse_hosts(hosts), ("python",), elastic=elastic)


def test_whom_a_request_is_sent_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    here = socket.gethostname()
    assert supervise._others_with_ranks(a_plan(f"h1,{here},h2")) == []
    assert supervise._others_with_ranks(a_plan("h1,h2")) == ["h1"]
    fixed = Elastic(2, 1, None, 300, None)
    assert supervise._others_with_ranks(a_plan(f"h1,{here},h2", fixed)) == ["h1", "h2"]
    hostfile = tmp_path / "hosts"
    changing = Elastic(2, 1, None, 300, hostfile)
    hostfile.write_text(f"h3:4\nlocalhost:2\nh1\n{here}\n")
    assert supervise._others_with_ranks(a_plan("h1,h2", changing)) == ["h1", "h2", "h3"]
    hostfile.write_text("-x\n")
    assert supervise._others_with_ranks(a_plan("h1,h2", changing)) == ["h1", "h2"]
    assert "only hosts that were there at the start are asked" in caplog.text


def test_files_are_made_and_removed_on_hosts_that_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a real shell each, which ssh would give the words to; one host refuses, one hangs."""
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin/ssh"
    ssh.write_text(
        "#!/bin/sh\n"
        "for w; do case $w in good) break ;; bad) exit 255 ;; hung) exec sleep 60 ;; esac; shift; done\n"
        f'shift; cd "{tmp_path}/good" && exec sh -c "$*"\n'
    )
    ssh.chmod(0o755)
    (tmp_path / "good").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    Path("it's here").mkdir()
    file = Path("it's here/stop")  # relative: the good host's is another
    there = tmp_path / "good" / file
    monkeypatch.setattr("horovod_yolo.launch.stop_files._SECONDS_TO_REMOVE", 1)
    with StopFiles(file, lambda: ["bad", "hung", "good"]) as files:
        assert not files.made
        files.make()
        assert files.made and file.exists()
        deadline = time.monotonic() + 10
        while not there.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not there.parent.exists()
