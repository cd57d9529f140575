"""Jobs of ``launch --torch`` meet faults: a late rank is named, a host that is cut off is noticed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.cluster.elastic import StaticJob
from tests.cluster.hosts import Cluster


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
