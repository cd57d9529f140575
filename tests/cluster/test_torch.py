"""Jobs over torch meet faults: a late rank, a host that is cut off, one that joins, one that is lost."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.elastic import TRAIN, StaticJob
from tests.cluster.hosts import Cluster
from tests.cluster.jobs import environment
from tests.helpers.ranks import REPOSITORY
from tests.helpers.runs import steps


@pytest.mark.slow
def test_a_late_rank_and_a_host_that_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, digits: Path
) -> None:
    flags = f"--data {digits} --img 64 --batch 8 --epochs 500 --noval"
    patience = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "4"}
    with (
        Cluster(3, tmp_path_factory.mktemp("h")) as hosts,
        StaticJob(hosts, folder, {"host2": 1, "host3": 1}, (2, 2, 2), flags, ["--torch"], **patience) as job,
    ):
        job.until_step(2)
        job.signal_rank(hosts["host3"], signal.SIGSTOP)
        job.until(lambda: "late: rank 1 on host3; others have waited for" in job.output, 20)
        job.signal_rank(hosts["host3"], signal.SIGCONT)
        job.until_step(job.step + 2)
        cut = time.monotonic()
        hosts["host3"].cut()
        assert job.finish(60) == 1, job.output
        assert time.monotonic() - cut < 60
        job.until_gone(hosts["host2"])
        hosts["host3"].heal()
        job.until_gone(hosts["host3"])


TORCHRUN = "torchrun --nnodes 1:2 --max-restarts 3 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id job"
GO_ON = re.compile(r"resume from .*: epoch \d+, step (\d+)")


@pytest.mark.slow
def test_the_world_grows_and_shrinks(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, digits: Path
) -> None:
    """As users call torchrun, without --resume: a host that joins costs nothing, one that is lost little."""
    flags = f"--data {digits} --img 64 --batch 8 --epochs 500 --noval {TRAIN}"
    run, log = folder / "exp", folder / "log"

    def step() -> int:
        return len((run / "steps.csv").read_text().splitlines()) - 1 if (run / "steps.csv").exists() else 0

    def until(what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            text = "".join(place.read_text() for place in folder.glob("log*"))
            assert time.monotonic() < deadline and one.poll() is None, text
            time.sleep(0.1)

    with Cluster(2, tmp_path_factory.mktemp("h")) as hosts:
        meeting = f"--rdzv-endpoint {hosts['host1'].address}:29400 --rdzv-conf last_call_timeout=3"
        words = f"{TORCHRUN} {meeting} --local-addr {{}} train.py {flags} --project {folder}"
        env = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        start = {h.name: words.format(h.address).split() for h in hosts}
        one = hosts["host1"].start(start["host1"], env=env, log=log, cwd=REPOSITORY)
        until(lambda: step() >= 3)
        hosts["host2"].start(start["host2"], env=env, log=folder / "log2", cwd=REPOSITORY)
        until(lambda: "ranks: 0 on" in log.read_text() + (folder / "log2").read_text())
        (stopped,) = re.findall(r"stopped on request after step (\d+)", log.read_text())
        until(lambda: step() > int(stopped) + 2)
        hosts["host2"].kill()
        lost = step()
        until(lambda: len(goes_on(log, folder)) == 2 and step() > lost)
        one.send_signal(signal.SIGTERM)
        one.wait(60)
    grown, shrunk = goes_on(log, folder)
    assert grown == int(stopped) and lost - 10 <= shrunk <= lost
    assert [int(row["step"]) for row in steps(run)] == list(range(1, step() + 1))
    assert not list(folder.glob("exp2"))


def goes_on(log: Path, folder: Path) -> list[int]:
    """The steps that ranks 0, of either host, have gone on from."""
    return sorted(int(n) for place in (log, folder / "log2") for n in GO_ON.findall(place.read_text()))
