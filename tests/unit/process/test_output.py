"""A log file on a full disk costs lines, not the run; and a line is one write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import disk

ECHO = """
import sys
from horovod_yolo.process.output import outlive_lost_output

if "outlive" in sys.argv:
    outlive_lost_output()
for line in sys.stdin:
    print(line, end="", flush=True)
    print("said", file=sys.stderr, flush=True)
"""

TWO_LINES = """
from horovod_yolo.process.output import outlive_lost_output

outlive_lost_output()
print(1, 2)
print("ä")
"""


@pytest.fixture
def disks_can_be_made() -> None:
    reason = disk.why_not()
    if reason is not None:
        pytest.skip(f"LOUD SKIP: {reason}; a log file on a full disk is not tested")


def echo(log: Path, *arguments: str) -> subprocess.Popen[str]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", ECHO, *arguments],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
        )


def say(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stderr.readline()


@pytest.mark.usefixtures("disks_can_be_made")
def test_lines_are_lost_while_the_disk_is_full(tmp_path: Path) -> None:
    with disk.Disk(tmp_path / "disk", "64k") as small:
        log = small.inside / "log"
        process = echo(log, "outlive")
        assert say(process, "before") == "said\n"
        small.fill()
        assert say(process, "x" * 10_000) == "said\n"
        small.free()
        assert say(process, "after") == "said\n"
        process.communicate()
        assert process.returncode == 0
        lines = log.read_text().splitlines()
        assert lines[0] == "before" and lines[-1].endswith("after")
        assert sum(map(len, lines)) < 10_000


@pytest.mark.usefixtures("disks_can_be_made")
def test_the_danger_is_real(tmp_path: Path) -> None:
    with disk.Disk(tmp_path / "disk", "64k") as small:
        process = echo(small.inside / "log")
        small.fill()
        assert say(process, "x" * 10_000).startswith("Traceback")
        process.communicate()
        assert process.returncode != 0


def test_a_line_is_one_write() -> None:
    read, write = os.pipe2(os.O_DIRECT)  # each write is a packet of its own
    with os.fdopen(read, "rb", buffering=0) as packets:
        environ = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        subprocess.run([sys.executable, "-c", TWO_LINES], stdout=write, env=environ, check=True)
        os.close(write)
        assert [packets.read(100) for _ in range(3)] == [b"1 2\n", "ä\n".encode(), b""]
