"""Run tests against one mistake: in a process forked from one that has imported torch and pytest already.

The mistake is in the forked process's memory only. No file changes, and processes that a test starts anew
do not have it.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from hypothesis import Phase, settings

SURVIVED, KILLED, TIMED_OUT = "survived", "killed", "timed out"
PROFILE = "mutants"
OUTPUT = "output"
MOST_MEMORY = 16 << 30
SLOWER_THAN_BEFORE = 10  # times as long as the tests took without a mistake is taken for an endless loop
LEAST_LIMIT_S = 30.0

# The same examples every time, and none looked for that is simpler than the first that fails.
settings.register_profile(
    PROFILE, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)


@dataclass
class Reach:
    """Which tests come by which lines, and how long each test takes."""

    seconds: dict[str, float] = field(default_factory=dict)
    tests: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    at_import: set[tuple[str, int]] = field(default_factory=set)

    def tests_for(self, path: str, first: int, last: int) -> list[str]:
        """Those that run one of these lines, quickest first; all tests where it runs at import."""
        lines = [(path, line) for line in range(first, last + 1)]
        if any(line in self.at_import for line in lines):
            found = set(self.seconds)
        else:
            found = set().union(*(self.tests.get(line, set()) for line in lines))
        return sorted(found, key=self.seconds.__getitem__)


def reach_of(tests: Sequence[str], paths: Sequence[Path]) -> Reach:
    """Run the tests once as they are, and see which lines of ``paths`` each of them runs.

    Raises:
        RuntimeError: they do not pass.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "reach.json"

        def child() -> int:
            watch = _Watch({str(path.resolve()) for path in paths})
            code = _pytest(tests, Path(folder), [watch])
            answer.write_text(json.dumps(watch.result()))
            return code

        ((_, code, output),) = _forked([(None, child, float("inf"))], jobs=1)
        if code != 0:
            raise RuntimeError(f"the tests do not pass without any mistake:\n{output}")
        seconds, lines, at_import = json.loads(answer.read_text())
    reach = Reach(seconds, at_import={(path, line) for path, line in at_import})
    for path, line, test in lines:
        reach.tests[path, line].add(test)
    return reach


@dataclass(frozen=True)
class Trial:
    """Tests that must see a mistake."""

    key: Any
    module: str  # dotted name
    make_code: Callable[[], CodeType]
    tests: Sequence[str]
    seconds: float  # that they take without it


def run_trials(trials: Sequence[Trial], jobs: int) -> Iterator[tuple[Any, str]]:
    """Key and outcome of each trial, as they end."""
    for trial in trials:
        if not trial.tests:
            yield trial.key, SURVIVED
    work = [
        (trial.key, _child_of(trial), max(LEAST_LIMIT_S, SLOWER_THAN_BEFORE * trial.seconds))
        for trial in trials
        if trial.tests
    ]
    for key, code, output in _forked(work, jobs):
        if code == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise RuntimeError(f"{key}: its tests are not found\n{output}")
        yield key, {0: SURVIVED, None: TIMED_OUT}.get(code, KILLED)


def _child_of(trial: Trial) -> Callable[[], int]:
    def child() -> int:
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
        sys.meta_path.insert(0, _Replaced(trial.module, trial.make_code()))
        with tempfile.TemporaryDirectory() as folder:
            return _pytest(trial.tests, Path(folder), [])

    return child


class _Replaced(importlib.abc.MetaPathFinder):
    """Finds one module as usual, and gives it other code."""

    def __init__(self, module: str, code: CodeType) -> None:
        self._module = module
        self._code = code

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.origin is not None
        spec.loader = _Loader(name, spec.origin, self._code)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code


class _Watch:
    """Notes lines and times while pytest runs."""

    def __init__(self, paths: set[str]) -> None:
        self._paths = paths
        self._test = ""
        self._seconds: dict[str, float] = {}
        self._lines: set[tuple[str, int, str]] = set()

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self._paths:
            return None
        if event == "line":
            self._lines.add((frame.f_code.co_filename, frame.f_lineno, self._test))
        return self._trace

    def pytest_sessionstart(self) -> None:
        self._follow()

    def _follow(self) -> None:
        sys.settrace(self._trace)
        threading.settrace(self._trace)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._test, start = item.nodeid, time.perf_counter()
        self._follow()  # a test may have followed something itself
        yield
        self._seconds[item.nodeid] = time.perf_counter() - start
        self._test = ""

    def result(self) -> list[Any]:
        sys.settrace(None)
        in_tests = [line for line in self._lines if line[2]]
        return [self._seconds, in_tests, [line[:2] for line in self._lines if not line[2]]]


def _pytest(tests: Sequence[str], folder: Path, plugins: list[Any]) -> int:
    arguments = ["-x", "-q", "--no-header", "--tb=line", "--assert=plain", f"--hypothesis-profile={PROFILE}"]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins are imported before the fork
    return int(pytest.main([*arguments, f"--basetemp={folder / 'tests'}", *tests], plugins=plugins))


Work = tuple[Any, Callable[[], int], float]  # key, what to do, seconds at most


def _forked(work: Sequence[Work], jobs: int) -> Iterator[tuple[Any, int | None, str]]:
    """Key, exit code (None: out of time) and end of the output of each, ``jobs`` of them at a time."""
    waiting, running = list(reversed(work)), {}
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                key, function, limit = waiting.pop()
                place = folder / str(len(waiting))
                pid = _start(function, place)
                running[pid] = (key, place, time.monotonic() + limit)
            for pid, (key, place, deadline) in list(running.items()):
                late = time.monotonic() > deadline
                if late:
                    os.killpg(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, 0 if late else os.WNOHANG)
                if done:
                    del running[pid]
                    with contextlib.suppress(ProcessLookupError):  # what a test may have left
                        os.killpg(pid, signal.SIGKILL)
                    code = None if late else os.waitstatus_to_exitcode(status)
                    output = (place / OUTPUT).read_text(errors="replace")[-4000:]
                    shutil.rmtree(place)
                    yield key, code, output
            time.sleep(0.01)
    finally:
        for pid in running:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shutil.rmtree(folder)


def _start(function: Callable[[], int], place: Path) -> int:
    """Fork; the child's output and its temporary files are in the new folder ``place``, however it ends."""
    place.mkdir()
    (place / OUTPUT).touch()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(PermissionError, ProcessLookupError):  # whoever of the two is first
            os.setpgid(pid, pid)
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        tempfile.tempdir = os.environ["TMPDIR"] = str(place)
        descriptor = os.open(place / OUTPUT, os.O_WRONLY)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = function()
    except BaseException:  # noqa: BLE001  nothing above this frame is the child's
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
