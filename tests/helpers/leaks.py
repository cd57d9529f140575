"""What a test leaves behind in this process and on this machine: it must be nothing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil

SECONDS_TO_END = 5.0  # what is ending already may take so long
# One of each a process, from when they are first needed until it ends.
SERVERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
THREADS_OF_A_PROCESS = ("tqdm_monitor",)  # from its first progress bar on, such as that of an ONNX export
FOLDERS_OF_A_PROCESS = ("torchinductor_",)
# By pytest for each test, and by albumentations, scikit-learn and torch when they are first imported.
VARIABLES_OF_OTHERS = {
    "PYTEST_CURRENT_TEST",
    "NO_ALBUMENTATIONS_UPDATE",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "TORCHINDUCTOR_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
}


@dataclass(frozen=True)
class Held:
    """What this process holds."""

    threads: Set[threading.Thread]
    processes: Set[int]
    variables: Set[tuple[str, str]]
    sockets: Set[str]
    files: Set[str]  # of the temporary folder

    @classmethod
    def now(cls) -> Held:
        """As it is."""
        return cls(
            frozenset(one for one in threading.enumerate() if one.name not in THREADS_OF_A_PROCESS),
            _children(),
            frozenset(one for one in os.environ.items() if one[0] not in VARIABLES_OF_OTHERS),
            _sockets(),
            _files(),
        )


def new_since(before: Held) -> list[str]:
    """What has come and does not go, in words. Waits for what is ending."""
    if not _differences(before, Held.now()):
        return []
    gc.collect()  # an exception's frames, in a circle with it, hold what ends with its last reference
    deadline = time.monotonic() + SECONDS_TO_END
    while (left := _differences(before, Held.now())) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _differences(before: Held, now: Held) -> list[str]:
    found = []
    for kind in fields(Held):
        had, has = getattr(before, kind.name), getattr(now, kind.name)
        new = [_named(one) for one in has - had]
        if kind.name == "variables":
            new += [f"{name} (it was {value!r})" for name, value in had - has]
        if new:
            found.append(f"{kind.name}: {', '.join(sorted(new))}")
    return found


def _named(one: Any) -> str:
    if isinstance(one, threading.Thread):
        return one.name
    if isinstance(one, tuple):
        return "=".join(one)
    if isinstance(one, int):
        return f"{one} ({' '.join(_command(one))[:100]})"
    return str(one)


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def _children() -> frozenset[int]:
    try:  # the quick answer of a process that has none
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return frozenset()
    found = (child.pid for child in psutil.Process().children())
    return frozenset(pid for pid in found if not any(name in " ".join(_command(pid)) for name in SERVERS))


def _sockets() -> frozenset[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.fspath(descriptor.readlink())
        except OSError:
            continue  # that of the list itself
        if target.startswith("socket:"):
            found.add(target)
    return frozenset(found)


def _files() -> frozenset[str]:
    own = multiprocessing.current_process()._config.get("tempdir", "")  # type: ignore[attr-defined]
    return frozenset(
        path.name
        for path in Path(tempfile.gettempdir()).iterdir()
        if not path.name.startswith(FOLDERS_OF_A_PROCESS) and path.name != Path(own).name
    )
