"""Weights & Biases as a logger: its client runs in a process of its own, `wandb_process`.

In the rank's process the client would stay for good: it changes how exceptions and exits are handled, starts
threads and a program that uploads, and waits for that program at the end, for days where a server is down.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.text import one_line
from horovod_yolo.telemetry.logger import End, LoggedRun, Point, Sent, final_numbers
from horovod_yolo.telemetry.redaction import redacted
from horovod_yolo.telemetry.wandb_process import remove_folders

log = logging.getLogger(__name__)
NAME = "wandb"
KEY, MODE, PATIENCE = "WANDB_API_KEY", "WANDB_MODE", "WANDB_INIT_TIMEOUT"
SECONDS_TO_ANSWER = 90.0  # longer than whatever the process may wait for itself, by default
SECONDS_TO_CHECK = 120.0  # from a cold disk
SECONDS_TO_END = 5.0
MOST_PATIENCE_S = 86400.0
# What the user has set counts. System metrics of one host of many, lists of packages and the state of the
# folder's git say little of a run, and nothing is told to others than the server. The client's own patience
# is minutes at the begin.
_DEFAULTS = {
    "WANDB_X_DISABLE_STATS": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_PROGRAM": "horovod-yolo train",
    PATIENCE: "20",
    "WANDB_STOP_ON_FATAL_ERROR": "true",
}
_ALWAYS = {
    "WANDB_SILENT": "true",  # nobody reads what the process prints
    "WANDB_CONSOLE": "off",
    "WANDB_FINISH_TIMEOUT": "14",  # `delivery` waits a little longer; the client itself, for ever
    "WANDB_FINISH_TIMEOUT_RAISES": "true",
}
_NEVER = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SERVICE")  # the run and the process are ours
_ENDED = "its client's process has ended"
_BOOT = (
    "import json, sys; told = json.loads(sys.stdin.buffer.raw.readline()); sys.path[:] = told['path']; "
    "from horovod_yolo.telemetry.wandb_process import main; main(told['pid'], told['folder'])"
)


class WandbError(Exception):
    """What the client says in its process; ``stopped``: it, or somebody at its page, wants the run to end."""

    def __init__(self, said: str, *, stopped: bool = False) -> None:
        super().__init__(said)
        self.stopped = stopped


class WandbLogger:
    """A run of Weights & Biases with the run's settings as config and its rows as history.

    Its id is the run's own. The summary, which arrives together with the rows, has the last step and epoch;
    in offline mode the files of earlier jobs have them.
    """

    name = NAME
    confirms = False  # the client sends when it sees fit

    def __init__(self) -> None:
        self._process: _Process | None = None
        self._is_whole = False  # whether the end of the run has arrived too
        self._ignores_stops = False
        self._was_open = False
        self._made: list[str] = []  # folders with what an earlier try may not have sent

    def open(self, run: LoggedRun) -> Sent:
        """Start the process; let it find the run or make it."""
        self._process = _Process()
        self._is_whole = False
        told = self._process.ask(
            "open",
            SECONDS_TO_ANSWER + _own_patience(),
            uid=run.uid,
            folder=str(run.folder),
            name=run.folder.name,
            settings=dict(run.settings),
            ignores_stops=self._ignores_stops,
        )
        if not self._was_open:
            log.info("wandb: %s", redacted(told["where"]))
        self._was_open = True
        remove_folders(map(Path, self._made))  # the server has said what it lacks: that is sent anew
        self._made = told["made"]
        return Sent(run.uid, told["step"], told["epoch"])

    def send(self, points: Sequence[Point]) -> None:
        """Add rows."""
        assert self._process is not None
        try:
            self._process.ask("send", points=[asdict(point) for point in points])
        except WandbError as error:
            # Where it was the button on the page, it is pressed for good: training goes on, and so do rows.
            self._ignores_stops |= error.stopped
            raise

    def finish(self, end: End, results: Mapping[str, Any]) -> None:
        """Add the results, and wait until all has arrived."""
        assert self._process is not None
        self._process.ask("finish", end=end, results=dict(final_numbers(results)))
        self._is_whole = True
        self._made = []

    def close(self) -> None:
        """End the process and what it has started."""
        if self._process is not None:
            self._process.end(SECONDS_TO_END if self._is_whole else 0.0)
            self._process = None


def require_key() -> None:
    """See that the client works here, and has a key where it needs one.

    Raises:
        UserError: it does not.
    """
    where = f"where rank 0 runs, or set {MODE}=offline: then it stays in the run's folder"
    process = None
    try:
        process = _Process()
        has_key = process.ask("check", SECONDS_TO_CHECK)["has_key"]
    except (WandbError, OSError) as error:
        said = one_line(redacted(str(error)))
        raise UserError(f"--log-to wandb: {said}", fix=f"put that right {where}") from None
    finally:
        if process is not None:
            process.end()
    if not has_key:
        raise UserError("--log-to wandb: there is no API key", fix=f"set {KEY} {where}")


def _own_patience() -> float:
    """For how long the user lets the client wait for its server, seconds; it waits less for other things."""
    try:
        return min(max(0.0, float(os.environ.get(PATIENCE) or 0)), MOST_PATIENCE_S)
    except ValueError:
        return 0.0  # the client itself says what is wrong with it


class _Process:
    """The client's process. It ends with this one, whichever way that ends.

    Raises:
        OSError: it cannot be started; nothing of it stays.
    """

    def __init__(self) -> None:
        # What it leaves there ends with it, also where one of the two is killed.
        self._folder = folder = tempfile.mkdtemp(prefix="wandb-")
        variables = {name: value for name, value in os.environ.items() if name not in _NEVER}
        try:
            # A session of its own: what is meant for the rank, such as Ctrl-C, must not end it first.
            self._child = subprocess.Popen(
                [sys.executable, "-c", _BOOT],
                env={**_DEFAULTS, "WANDB_CACHE_DIR": folder, **variables, **_ALWAYS, "TMPDIR": folder},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            self._write({"path": sys.path, "pid": os.getpid(), "folder": folder})
        except OSError:
            self.end()
            raise

    def ask(self, what: str, seconds: float = SECONDS_TO_ANSWER, **details: Any) -> dict[str, Any]:
        """Let it do something, and wait for its answer.

        Raises:
            WandbError: the client has failed at it.
            OSError: the process has ended or does not answer as it should.
        """
        assert self._child.stdout is not None
        self._write({"do": what, **details})
        if not select.select([self._child.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"its client does not answer within {seconds:g} s")
        line = self._child.stdout.readline()
        if not line:
            raise ConnectionError(_ENDED)
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:  # of what Python itself does as it starts, such as a .pth file that prints
            raise ConnectionError(f"its client's process says {line[:80]!r}") from None
        if "error" in told:
            raise WandbError(told["error"], stopped=told.get("stopped", False))
        return told

    def end(self, seconds: float = 0.0) -> None:
        """End it, after so long at most, and what it has started."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            started = psutil.Process(self._child.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            started = []
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            self._child.stdin.close()
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._child.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, what: object) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(what).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise ConnectionError(_ENDED) from None
