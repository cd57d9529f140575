"""Elastic jobs on test hosts, and what can be seen of them while they meet their faults.

The launcher runs on a host of its own, so that the host of any rank, rank 0's too, may be lost.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import psutil

from tests.cluster.hosts import Cluster, Host
from tests.cluster.jobs import environment
from tests.helpers.ranks import results
from tests.helpers.runs import steps

FOR_GOOD = ["--blacklist-cooldown-range", "600", "3600"]  # a host that has failed stays out
IMAGES = 320  # of the tests' data set: an epoch is long enough for a host to come back
GO_ON = re.compile(r"(\d+) ranks go on from step (\d+) of epoch (\d+)")
J = TypeVar("J", bound="ElasticJob")
_TMPDIR = "/run/scratch/job.42"
TRAIN = "--cfg yolov5n --workers 0 --noplots --compression none"


class ElasticJob:
    """``horovodrun`` on the cluster's first host, ranks on the others. The context ends what is left of it.

    Args:
        cluster: its first host is the launcher's.
        folder: seen by all hosts.
        slots: of each host that may have ranks, from the start.
        ranks: to start with, at least and at most.
        train: flags of ``train.py``, beside those of every elastic run.
        launch: more flags of ``horovodrun``.
        variables: of the environment.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        slots: dict[str, int],
        ranks: tuple[int, int, int],
        train: str,
        launch: Sequence[str] = (),
        **variables: str,
    ) -> None:
        self.cluster = cluster
        self.folder = folder
        self.run = folder / "run"
        self._log = folder / "job.log"
        self.hostfile = folder / "hosts"
        self.slots = dict(slots)
        self.write_hosts()
        place = ("--project", str(folder), "--name", "run")
        self._command = self._words(ranks, launch, [*place, *TRAIN.split(), *train.split()])
        self._variables = {
            "HOSTFILE": str(self.hostfile),
            "XDG_RUNTIME_DIR": str(folder),  # where the discovery script remembers its answers
            "HOROVOD_LOG_HIDE_TIME": "0",
            **variables,
        }

    def _words(self, ranks: tuple[int, int, int], launch: Sequence[str], train: Sequence[str]) -> list[str]:
        """The command that starts the job."""
        count, least, most = ranks
        return [
            *("horovodrun", "--disable-cache", "--network-interfaces", "eth0"),
            *("-np", str(count), "--min-np", str(least), "--max-np", str(most)),
            *("--host-discovery-script", "launch/discover_hosts.sh", "--gloo-timeout-seconds", "30"),
            *("--blacklist-cooldown-range", "5", "10", *launch),
            *("python", "train.py", "--elastic", *train),
        ]

    def __enter__(self: J) -> J:
        launcher = next(iter(self.cluster))
        self._process = launcher.start(
            self._command, env=environment(**self._variables), log=self._log, cwd=Path.cwd()
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self._process.kill()
        self._process.wait()

    def write_hosts(self) -> None:
        """Tell the discovery script of ``slots``."""
        self.hostfile.write_text("".join(f"{name} slots={count}\n" for name, count in self.slots.items()))

    def strike(self, name: str) -> None:
        """Strike a host out of the hostfile."""
        del self.slots[name]
        self.write_hosts()

    @property
    def running(self) -> bool:
        """Whether the launcher is there."""
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def step(self) -> int:
        """The last step of the table."""
        try:
            last = (self.run / "steps.csv").read_text().splitlines()[-1].split(",")[0]
        except (FileNotFoundError, IndexError):
            return 0
        return int(last) if last.isdecimal() else 0

    @property
    def worlds(self) -> list[tuple[int, int]]:
        """(ranks, step they went on from) of each change so far."""
        return [(int(ranks), int(step)) for ranks, step, _ in GO_ON.findall(self.output)]

    def until(self, what: Callable[[], bool], timeout: float) -> float:
        """Wait; the seconds it took. Fails with the job's output where it ends or lasts too long."""
        start = time.monotonic()
        while not what():
            if not self.running:
                raise AssertionError(f"the job ended with {self._process.returncode}:\n{self.output}")
            if time.monotonic() - start > timeout:
                raise AssertionError(f"not within {timeout} s; the job printed:\n{self.output}")
            time.sleep(0.05)
        return time.monotonic() - start

    def until_step(self, step: int, timeout: float = 120) -> float:
        """Wait for a step."""
        return self.until(lambda: self.step >= step, timeout)

    def until_world(self, ranks: int, since: int, timeout: float = 120) -> float:
        """Wait for a change, after the first ``since`` of them, to so many ranks, and for a step after it."""
        seconds = self.until(lambda: any(size == ranks for size, _ in self.worlds[since:]), timeout)
        step = self.worlds[-1][1]
        return seconds + self.until(lambda: self.step > step, timeout)

    def finish(self, timeout: float = 240) -> int:
        """Wait for the end; the launcher's exit code."""
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                raise AssertionError(f"the job did not end within {timeout} s:\n{self.output}")
            time.sleep(0.1)
        return self._process.returncode

    def until_gone(self, host: Host, timeout: float = 40) -> None:
        """Wait until nothing of the job, which has ended, is left on a host."""
        deadline = time.monotonic() + timeout
        while left := host.processes():
            assert time.monotonic() < deadline, left
            time.sleep(0.2)

    def signal_rank(self, host: Host, signum: signal.Signals) -> None:
        """Send a signal to a rank of a host."""
        self.a_rank(host).send_signal(signum)

    def host_of_rank_0(self) -> str:
        """The host that rank 0 was started on; it may have moved since."""
        (name,) = {
            host.name
            for host in self.cluster
            for rank in host.ranks()
            if rank.environ().get("HOROVOD_RANK") == "0"
        }
        return name

    def a_rank(self, host: Host) -> psutil.Process:
        """The first rank of a host."""
        return min(host.ranks(), key=lambda process: process.pid)

    def images_of_epochs(self) -> list[int]:
        """Images that the steps of each epoch took, by the table; its steps must follow one another."""
        rows = steps(self.run)
        assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1)), "a step twice or none"
        sums = [0] * (int(rows[-1]["epoch"]) + 1)
        for row in rows:
            sums[int(row["epoch"])] += int(row["images"])
        return sums

    def stands_still(self, seconds: float = 5) -> bool:
        """Whether no step is made for so long."""
        step = self.step
        time.sleep(seconds)
        return self.step == step

    @property
    def results(self) -> dict[str, object]:
        """``results.json``."""
        return results(self.run)


class LaunchedJob(ElasticJob):
    """The same by ``horovod-yolo launch --elastic``, which chooses what is not given here.

    Each host has a /tmp of its own: the rest of the file system is shared, and there a file for the ranks of
    one host would be seen by all of them. TMPDIR is on the launcher's host only.
    """

    def _words(self, ranks: tuple[int, int, int], launch: Sequence[str], train: Sequence[str]) -> list[str]:
        hosts = ["--hostfile", str(self.hostfile)]
        return ["horovod-yolo", "launch", *hosts, *self._bounds(ranks), *launch, "--", "train", *train]

    def _bounds(self, ranks: tuple[int, int, int]) -> list[str]:
        count, least, most = map(str, ranks)
        return ["--elastic", "-np", count, "--min-np", least, "--max-np", most]

    def __enter__(self: J) -> J:
        for host in self.cluster:
            host.own_tmp()
        next(iter(self.cluster)).run(["mkdir", "-p", _TMPDIR])
        self._variables["TMPDIR"] = _TMPDIR
        del self._variables["HOSTFILE"]
        return super().__enter__()

    def ask_to_stop(self) -> None:
        """SIGTERM to the launcher."""
        launcher = next(iter(self.cluster))
        (process,) = [p for p in launcher.processes() if "launch" in p.cmdline()[1:3]]
        process.terminate()

    def stop_folders(self, host: Host) -> list[str]:
        """What lies on a host for ranks that look whether they are asked to stop."""
        return host.run(["find", "/tmp", "-maxdepth", "1", "-name", "horovod_yolo-*"]).stdout.split()


class StaticJob(LaunchedJob):
    """By ``horovod-yolo launch`` with all slots, and not elastic."""

    def _bounds(self, ranks: tuple[int, int, int]) -> list[str]:
        return []
