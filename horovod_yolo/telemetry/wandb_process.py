"""The process in which the client of Weights & Biases runs: `wandb_log` starts it and asks it.

A request is a line of JSON on its standard input, and so is the answer on its standard output. It ends with
the process that has started it, a few seconds later at most: also where that is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

PROJECT = "horovod_yolo"  # where WANDB_PROJECT says none
SECONDS_ALONE = 4.0  # once the rank has ended, to upload what is left
SECONDS_FOR_THE_LAST = 15.0  # until the process of an earlier job has ended
SECONDS_OF_TROUBLE = 10.0  # a single error of a server's is nothing
SECONDS_OF_SILENCE = 90.0  # for one upload
SECONDS_BETWEEN_LOOKS = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # are for the rank


class Stopped(Exception):
    """The client has given up uploading, or somebody has pressed "stop" on the run's page."""


class Client:
    """wandb's client and its run."""

    def __init__(self) -> None:
        self.is_over = False
        self._run: Any = None
        self._lock: IO[bytes] | None = None
        self._row = 0  # the next one's number: what wandb calls a step
        self._sent: dict[str, int] = {}  # the last number of each axis
        self._run_of: tuple[Path, str] | None = None  # in offline mode, where its files are and its id
        self._defined: set[str] = set()
        self._stopped = threading.Event()

    def check(self) -> dict[str, Any]:
        """Say whether there is a key, or no need for one. Asks no server and nobody."""
        import wandb

        if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
            return {"has_key": True}
        return {"has_key": wandb.login(prompt=False, verify=False)}

    def open(
        self, uid: str, folder: str, name: str, settings: dict[str, Any], ignores_stops: bool
    ) -> dict[str, Any]:
        """Begin the run or go on with it; say how far it is."""
        import wandb

        given = wandb.setup().settings
        root = Path(os.environ.get("WANDB_DIR") or folder)
        is_offline = given.mode in ("offline", "dryrun")
        if given.mode != "disabled":
            self._wait_for_the_last(root / "wandb", uid)
        self._run_of = (root, uid) if is_offline else None
        before = _rows_in_files(root, uid) if is_offline else {}
        earlier = _online_folders(root, uid)
        try:
            self._run = run = wandb.init(
                dir=root,
                id=uid,
                resume="allow",
                project=given.project or PROJECT,
                name=given.run_name or name,
                config=settings,
                settings=wandb.Settings(stop_fn=(lambda: None) if ignores_stops else self._stopped.set),
            )
        except Exception:  # in a night without a server there would be hundreds
            remove_folders(_online_folders(root, uid) - earlier)
            raise
        there = before if is_offline else run.summary
        self._row = max(run.starting_step, before.get("_step", -1) + 1)
        for axis in ("step", "epoch"):
            run.define_metric(axis, hidden=True)
        step, epoch = int(there.get("step", 0)), int(there.get("epoch", -1))
        where = f"offline; 'wandb sync {root / 'wandb'}' uploads it" if is_offline else run.url or given.mode
        made = sorted(str(path) for path in _online_folders(root, uid) - earlier)
        return {"step": step, "epoch": epoch, "where": where, "made": made}

    def send(self, points: list[dict[str, Any]]) -> dict[str, Any]:
        """Add rows, each against its own axis."""
        for point in points:
            axis, values = point["axis"], point["values"]
            for name in values.keys() - self._defined:
                self._run.define_metric(name, step_metric=axis)
                self._defined.add(name)
            row = {**values, axis: point["number"], "_timestamp": point["time"]}
            self._run.log(row, step=self._row, commit=True)  # not with the next one
            self._row += 1
            self._sent[axis] = point["number"]
        if trouble := _trouble_of(self._run):
            raise ConnectionError(trouble)
        if self._stopped.is_set():
            raise Stopped("it has stopped uploading, or somebody has pressed 'stop' on the run's page")
        return {}

    def finish(self, end: str, results: dict[str, float]) -> dict[str, Any]:
        """End the run there, and wait until all has arrived."""
        self._run.summary.update(results)
        if end == "stopped":
            self._run.mark_preempting()
        run, self._run = self._run, None
        run.finish(exit_code=int(end != "finished"))
        if self._run_of is not None and end == "finished":  # who goes on with the run looks there anyway
            kept = _rows_in_files(*self._run_of)
            if any(kept.get(axis, -1) < last for axis, last in self._sent.items()):
                raise OSError("its file lacks the last rows, as on a full disk")
        self.is_over = True
        return {}

    def leave(self) -> None:
        """The rank has ended or lets go: what has come so far is not to be lost."""
        if self._run is not None:
            self.finish("broken off", {})

    def _wait_for_the_last(self, folder: Path, uid: str) -> None:
        """Two processes must not add to one run: that of a rank which was killed may still be at it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / f"{uid}.lock").open("ab")
        deadline = time.monotonic() + SECONDS_FOR_THE_LAST
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process still logs this run") from None
                time.sleep(SECONDS_BETWEEN_LOOKS / 5)
            except OSError:
                return  # a file system without locks; whoever was killed there has had seconds by now
            else:
                return


def _online_folders(root: Path, uid: str) -> set[Path]:
    """Of this run, one for each time that it was begun; in offline mode they have other names."""
    return set(root.glob(f"*wandb/run-*-{uid}"))


def remove_folders(folders: Iterable[Path]) -> None:
    """Remove these, and the links beside them that then lead nowhere."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        for path in folder.parent.iterdir():
            if path.is_symlink() and not path.exists():
                path.unlink(missing_ok=True)


def _rows_in_files(root: Path, uid: str) -> dict[str, int]:
    """The last step, epoch and row in the files of this run.

    The newest file that has any has the last: each job went on where its predecessor had ended.
    """
    found: dict[str, int] = {}
    files = root.glob(f"*wandb/*run-*-{uid}/run-{uid}.wandb")  # the time is part of their folders' names
    for path in sorted(files, key=lambda path: path.parent.name.removeprefix("offline-"), reverse=True):
        last: dict[str, int] = {}
        for row in _history(path):
            last |= {name: int(row[name]) for name in ("step", "epoch", "_step") if name in row}
        found = {**last, **found}
        if found.keys() >= {"step", "epoch"}:
            break
    return found


def _history(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file, by wandb's own reader; a kill may have cut off the last ones."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    reader = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    with reader.stdout:
        for line in reader.stdout:
            record = json.loads(line)
            if record.get("type") == "history":
                yield record["history"]["item"]
    if reader.wait():
        raise OSError(f"{path} cannot be read")


def _trouble_of(run: Any) -> str:
    """What keeps the client from uploading; empty: nothing. It tries for days, and tells nobody."""
    try:
        from wandb.proto import wandb_internal_pb2
        from wandb.sdk.wandb_setup import singleton

        messages: Any = wandb_internal_pb2
        request = messages.Record(request=messages.Request(operations=messages.OperationStatsRequest()))
        interface = run._interface
    except (ImportError, AttributeError):
        return ""  # these are wandb's own affairs: in a later version only `finish` says it

    async def asked() -> Any:
        answer = await interface.deliver_async(request)
        return await answer.wait_async(timeout=SECONDS_OF_TROUBLE)

    if interface is None:
        return ""  # a run of WANDB_MODE=disabled
    stats = singleton().asyncer.run(asked).response.operations_response.operation_stats
    for work in stats.operations:
        if work.error_status and work.runtime_seconds > SECONDS_OF_TROUBLE:
            return f"{work.desc}: {work.error_status}"
        if work.runtime_seconds > SECONDS_OF_SILENCE:
            return f"{work.desc}: no answer for {SECONDS_OF_SILENCE:g} s"
    return ""


def _answer(client: Client, line: bytes) -> dict[str, Any]:
    request = json.loads(line)
    work: Mapping[str, Callable[..., dict[str, Any]]] = {
        "check": client.check,
        "open": client.open,
        "send": client.send,
        "finish": client.finish,
    }
    try:
        return work[request.pop("do")](**request)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rank is told
        return {"error": str(error) or type(error).__name__, "stopped": isinstance(error, Stopped)}


def _lines(pipe: int, parent: int) -> Iterator[bytes]:
    """Requests, until the rank has ended. Its children may hold its end of the pipe open: it is asked for."""
    waiting = b""
    while os.getppid() == parent:
        if not select.select([pipe], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            continue
        read = os.read(pipe, 1 << 16)
        if not read:
            return
        *lines, waiting = (waiting + read).split(b"\n")
        yield from lines


def _end_after(parent: int, folder: str) -> None:
    """End this process a while after its rank, whatever it does then."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    time.sleep(SECONDS_ALONE)
    _end(folder)


def _end(folder: str) -> NoReturn:
    """End at once, without what wandb would do then; its own program ends with this process."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main(parent: int, folder: str) -> None:
    """Answer requests, until the run is finished or the parent ends.

    Args:
        parent: its process's id.
        folder: for temporary files, made for this process.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)  # training goes first
    threading.Thread(target=_end_after, args=(parent, folder), daemon=True).start()
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):  # wandb's own programs inherit these
        os.dup2(null, stream)
    client = Client()
    try:
        for line in _lines(requests, parent):
            answer = json.dumps(_answer(client, line)).encode() + b"\n"
            with contextlib.suppress(BrokenPipeError):  # the rank has ended meanwhile
                os.write(answers, answer)
            if client.is_over:
                break
        client.leave()
    finally:
        _end(folder)
