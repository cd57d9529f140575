"""Signals and the launcher's file become requests; a second SIGINT does not wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from horovod_yolo.process.signals import SIGNALS, STOP_FILE, is_request, listening
from horovod_yolo.process.stop import StopRequest


class Noting(StopRequest):
    """Tells when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = threading.Event()

    def ask(self, *, certain: bool = True) -> None:
        super().ask(certain=certain)
        self.noted.set()


@pytest.mark.usefixtures("hangups_are_heard")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    before, stop = signal.getsignal(number), Noting()
    with listening(stop):
        os.kill(os.getpid(), number)
        assert stop.noted.wait(10)
    assert stop.asked
    assert stop.certain is (number != signal.SIGTERM)  # with which torchrun ends ranks to start them anew
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_launchers_file_is_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    stop = Noting()
    with listening(stop):
        assert not stop.noted.wait(0.5)
        (tmp_path / "stop").touch()
        assert stop.noted.wait(10)


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Noting()
        with listening(stop):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.noted.wait(0.5)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_file_of_somebody_else_is_a_request(tmp_path: Path) -> None:
    """Neither theirs in this user's folder, nor this user's where they could put it, nor a link."""
    folder, file = tmp_path / "f", tmp_path / "f" / "stop"
    assert not is_request(file)
    folder.mkdir(mode=0o700)
    file.touch()
    assert is_request(file)
    folder.chmod(0o777)
    assert not is_request(file)
    folder.chmod(0o700)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert not is_request(file)
    file.unlink()
    file.mkdir()
    assert not is_request(file)
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert not is_request(linked / "stop")
    if os.geteuid() == 0:
        file.rmdir()
        file.touch()
        os.chown(file, 65534, 65534)
        assert not is_request(file)


# The main thread is inside C and holds no bytecode back: Python's own handlers would wait for it.
BUSY = """
import ctypes
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.process.signals import listening
with listening(StopRequest()):
    print("ready", flush=True)
    pause = ctypes.CDLL(None).sleep
    while True:
        pause(30)
"""


def test_a_second_interrupt_ends_a_process_that_is_busy() -> None:
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)  # asks once more, which changes nothing
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.stdout.close()
