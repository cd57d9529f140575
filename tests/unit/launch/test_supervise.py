"""Which exit code counts, and the files that ask ranks to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from horovod_yolo.launch import stop_files, supervise
from horovod_yolo.launch.elastic import Elastic
from horovod_yolo.launch.hostfile import parse_hosts
from horovod_yolo.launch.plan import LaunchPlan
from horovod_yolo.launch.stop_files import StopFiles
from horovod_yolo.process.signals import SIGNALS, is_request


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
    assert supervise._others_with_ranks(a_plan("h1,h2")) == ["h1", "h2"]
    fixed = Elastic(2, 1, None, 300, None)
    assert supervise._others_with_ranks(a_plan(f"h1,{here},h2", fixed)) == ["h1", "h2"]
    hostfile = tmp_path / "hosts"
    changing = Elastic(2, 1, None, 300, hostfile)
    hostfile.write_text(f"h3:4\nlocalhost:2\nh1\n{here}\n")
    assert supervise._others_with_ranks(a_plan("h1,h2", changing)) == ["h1", "h2", "h3"]
    hostfile.write_text("-x\n")
    assert supervise._others_with_ranks(a_plan("h1,h2", changing)) == ["h1", "h2"]
    assert "only hosts that were there at the start are asked" in caplog.text


def ssh_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh with a real shell behind it; host `bad` refuses, `hung` hangs, `late` refuses at first."""
    ssh = folder / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text(
        "#!/bin/sh\n"
        f'cd "{folder}"; for w; do shift; case $w in good|bad|hung|late) host=$w; break;; esac; done\n'
        "echo $host >> asked\n"
        "case $host in bad) echo no way >&2; exit 255;; hung) exec sleep 60;;\n"
        "late) [ -e tried ] || { touch tried; echo not yet >&2; exit 255; };; esac\n"
        'echo "welcome to $host"; exec sh -c "$*"\n'
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(stop_files, "_SECONDS_TO_REMOVE", 1)
    monkeypatch.setattr(stop_files, "_SECONDS_BETWEEN_TRIES", 0.1)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def asked(folder: Path) -> list[str]:
    file = folder / "asked"
    return file.read_text().split() if file.exists() else []


def test_the_first_host_that_can_be_asked_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_to(tmp_path, monkeypatch)
    with StopFiles(lambda: ["bad", "good", "late"], one_is_enough=True) as files:
        assert not files.made and not files.file.exists()
        files.make()
        assert files.made and is_request(files.file)
        until(lambda: asked(tmp_path) == ["bad", "good"])
        time.sleep(0.5)
    assert asked(tmp_path) == ["bad", "good"]
    assert not files.file.parent.exists()


def test_every_host_is_asked_and_tried_again_and_one_that_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ssh_to(tmp_path, monkeypatch)
    with StopFiles(lambda: ["bad", "late", "hung", "good"], one_is_enough=False) as files:
        files.make()
        until(lambda: asked(tmp_path).count("late") == 2 and asked(tmp_path).count("bad") > 2)
        until(lambda: "late has been asked to stop now" in caplog.text)
    assert {"good", "hung"} <= set(asked(tmp_path))
    assert caplog.text.count("COULD NOT BE ASKED TO STOP (bad: no way); trying again") == 1
    assert not files.file.parent.exists()


def test_where_there_is_no_ssh_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a pod of Kubeflow's first operators."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with StopFiles(lambda: ["good"], one_is_enough=True) as files:
        files.make()
        until(lambda: "TO STOP (good: ssh cannot be started here (No such file" in caplog.text)


@pytest.mark.usefixtures("hangups_are_heard")
@pytest.mark.parametrize("number", SIGNALS)
def test_any_signal_is_one_request_to_the_ranks(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopFiles(list, one_is_enough=True) as files:
        job = subprocess.Popen(["sleep", "60"])
        with supervise._passing_on(job, files):
            os.kill(os.getpid(), number)
            until(lambda: is_request(files.file))
            assert job.poll() is None
        job.wait()
    assert signal.getsignal(number) is before


def test_a_path_that_somebody_else_has_taken_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A link in place of the folder leads to a folder of this user's own, whose file must not be removed."""
    ssh_to(tmp_path, monkeypatch)
    with StopFiles(lambda: ["good"], one_is_enough=True) as files:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "stop").write_text("precious")
        files.file.parent.rmdir()
        files.file.parent.symlink_to(mine)
        assert not is_request(files.file)
        monkeypatch.setattr(Path, "touch", lambda path: None)
        files.make()
        until(lambda: "its folder for the request cannot be made there" in caplog.text)
        files.file.parent.unlink()
        (mine / "stop").rename(tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "precious"
