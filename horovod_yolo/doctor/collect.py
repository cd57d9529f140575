"""Ask all hosts at once what they have to say; a host that does not answer is an answer too."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from horovod_yolo.doctor import ssh
from horovod_yolo.launch.hostfile import Host

PROBE = Path(__file__).with_name("probe.py")
MOST_AT_ONCE = 64

Facts = dict[str, Any]


def default_folders(project: str, cache_dir: str | None = None) -> dict[str, str]:
    """Where a job writes: run folders, the caches, temporary files."""
    caches = os.environ.get("XDG_CACHE_HOME") or _cache_home()
    return {"run": project, "cache": cache_dir or caches, "tmp": tempfile.gettempdir()}


def _cache_home() -> str:
    try:
        return str(Path.home() / ".cache")
    except RuntimeError:  # as in containers, whose users have no account
        return tempfile.gettempdir()


@dataclass(frozen=True)
class Questions:
    """What hosts are asked.

    ``folders`` maps what a folder is for to its path; relative paths start at the current folder.
    """

    data: str = ""  # data.yaml, "" for none
    folders: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 60.0  # for the whole answer of a host

    def as_argument(self) -> str:
        """For the probe's command line."""
        asked = {
            "cwd": str(Path.cwd()),
            "pythonpath": os.environ.get("PYTHONPATH", ""),
            "data": self.data,
            "seconds": self.seconds,
            "folders": dict(self.folders),
        }
        return json.dumps(asked)


@dataclass(frozen=True)
class Report:
    """What a host said, by section of the probe, and how its connection ended.

    ``clock`` bounds by how many seconds the host's clock is ahead of this one's: its answer was made after
    the question was sent and before it came in.
    """

    host: str
    slots: int = 1
    facts: Mapping[str, Facts] = field(default_factory=dict)
    address: str | None = None  # what its name means here
    clock: tuple[float, float] | None = None
    code: int = 0  # of ssh or the probe
    errors: str = ""  # what ssh or the probe complained of
    timed_out: bool = False

    @property
    def complete(self) -> bool:
        """Whether the host answered to the end."""
        return self.code == 0 and not self.timed_out and "disks" in self.facts


def ask(hosts: Sequence[Host], questions: Questions) -> list[Report]:
    """A report of each host, in their order, after little more than ``questions.seconds``.

    Raises:
        UserError: there is no ssh here.
    """
    source = PROBE.read_bytes()
    with ThreadPoolExecutor(min(len(hosts), MOST_AT_ONCE)) as pool:
        return list(pool.map(lambda host: _ask(host, source, questions), hosts))


def _ask(host: Host, source: bytes, questions: Questions) -> Report:
    words, asked = ssh.program(questions.as_argument()), time.time()
    expired = threading.Event()
    with tempfile.TemporaryFile() as errors, ssh.running(host.name, words, errors) as process:

        def end() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(questions.seconds, end)
        timer.start()
        facts, clock = _read(process, source, asked)
        code = process.wait()
        timer.cancel()
        errors.seek(0)
        text = errors.read(1 << 16).decode(errors="replace").strip()
    address = ssh.address_of(host.name)
    return Report(host.name, host.slots, facts, address, clock, code, text, expired.is_set())


def _read(
    process: subprocess.Popen[bytes], source: bytes, asked: float
) -> tuple[dict[str, Facts], tuple[float, float] | None]:
    """The sections that arrive, and the bounds of the clock."""
    assert process.stdin is not None and process.stdout is not None
    facts: dict[str, Facts] = {}
    clock = None
    try:
        process.stdin.write(source)
        process.stdin.close()
    except BrokenPipeError:  # it ended before it read: its code and errors tell why
        return facts, clock
    for line in process.stdout:
        section = parse(line)
        if section is None:
            continue  # a greeting of the login shell
        facts[section["section"]] = section["facts"]
        if section["section"] == "hello":
            there = section["facts"]["time"]
            clock = there - time.time(), there - asked
    return facts, clock


def parse(line: bytes) -> Facts | None:
    """A section of the probe, or None for any other line."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"section", "facts"} <= found.keys() else None
