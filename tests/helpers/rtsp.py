"""A real RTSP server as a process of its own, with Debian's gir1.2-gst-rtsp-server-1.0."""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

PYTHON = "/usr/bin/python3"  # GStreamer's bindings come with the system's
PROGRAM = Path(__file__).with_name("rtsp_server.py")
NEEDED = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


def require_rtsp_server() -> None:
    """Skip the test, loudly, where there is none."""
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", NEEDED], capture_output=True).returncode:
        pytest.skip("LOUD SKIP: no RTSP server; `make packages` installs gir1.2-gst-rtsp-server-1.0")


class RtspServer:
    """Streams a test picture, 20 images a second, while it runs. It can go away and come back."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.address = f"rtsp://127.0.0.1:{self._port}/live"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Listen, on the same port every time."""
        self._process = subprocess.Popen(
            [PYTHON, str(PROGRAM), str(self._port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def freeze(self) -> None:
        """Send nothing, and do not answer; connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Go away."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            process.communicate()
