"""A test that leaves something behind is told so, by kind and name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import leaks
from tests.helpers.leaks import Held, new_since

Undo = Callable[[], object]


def a_thread() -> Undo:
    """That waits."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="left-thread", daemon=True)
    thread.start()
    return lambda: (over.set(), thread.join())


def a_process() -> Undo:
    """That sleeps."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "left-process"])
    return lambda: (process.kill(), process.wait())


def a_variable() -> Undo:
    """That was not there."""
    os.environ["LEFT_VARIABLE"] = "1"
    return lambda: os.environ.pop("LEFT_VARIABLE")


def another_value() -> Undo:
    """Of a variable that was there."""
    before, os.environ["TMPDIR"] = os.environ["TMPDIR"], "/left-value"
    return lambda: os.environ.update(TMPDIR=before)


def a_socket() -> Undo:
    """That nobody closed."""
    return socket.socket().close


def a_file() -> Undo:
    """In the temporary folder."""
    handle, name = tempfile.mkstemp(prefix="left-file-")
    os.close(handle)
    return Path(name).unlink


@pytest.mark.parametrize(
    ("leave", "kind", "name"),
    [
        (a_thread, "threads", "left-thread"),
        (a_process, "processes", "left-process"),
        (a_variable, "variables", "LEFT_VARIABLE=1"),
        (another_value, "variables", "TMPDIR=/left-value"),
        (a_socket, "sockets", "socket:"),
        (a_file, "files", "left-file-"),
    ],
)
def test_what_is_left_is_named(
    leave: Callable[[], Undo], kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "SECONDS_TO_END", 0.2)
    before = Held.now()
    assert new_since(before) == []
    undo = leave()
    try:
        (left,) = new_since(before)
    finally:
        undo()
    assert left.startswith(f"{kind}: ")
    assert name in left
    assert new_since(before) == []


def test_what_is_ending_is_waited_for() -> None:
    before = Held.now()
    process = subprocess.Popen(["sleep", "0.5"])
    waiting = threading.Thread(target=process.wait)
    waiting.start()
    assert new_since(before) == []
    waiting.join()


def test_a_run_fails_in_which_something_is_left(tmp_path: Path) -> None:
    test = tmp_path / "test_leaves.py"
    test.write_text(
        "import socket\nfrom tests.conftest import nothing_is_left_behind\nKEPT = []\n"
        "def test_leaves(): KEPT.append(socket.socket())\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", str(test)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "1 passed, 1 error" in ended.stdout
    assert "left behind: sockets: socket:" in ended.stdout
