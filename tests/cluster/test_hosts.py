"""The test hosts themselves: what the other tests of this folder take for granted."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from tests.cluster.hosts import Cluster


def test_hosts_are_hosts(folder: Path) -> None:
    with Cluster(2, folder) as cluster:
        first, second = cluster
        assert first.run(["ssh", "host2", "hostname; whoami"]).stdout.split() == ["host2", "root"]
        assert first.run(["ssh", "host2", "whoami"], user="trainer").stdout.split() == ["trainer"]
        second.run(["touch", "/dev/shm/mine"])
        assert first.run(["ls", "/dev/shm"]).stdout == ""
        sleeper = second.start(["sleep", "600"])
        deadline = time.monotonic() + 5
        while not second.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [process.name() for process in second.processes()] == ["sleep"]
        assert first.processes() == []
        second.kill()
        assert sleeper.wait(timeout=10) != 0
        assert first.run(["ssh", "host2", "true"]).returncode == 255
        second.boot()
        assert first.run(["ssh", "host2", "true"]).returncode == 0
        left = [host.pid for host in cluster]
    assert not any(psutil.pid_exists(pid) for pid in left)


def test_cables(folder: Path) -> None:
    with Cluster(2, folder) as cluster:
        first, second = cluster

        def reach(seconds: int) -> int:
            return first.run(["ssh", "-o", f"ConnectTimeout={seconds}", "host2", "true"]).returncode

        for breaks, mends in ((second.cut, second.heal), (second.drop, second.undrop)):
            breaks()
            assert reach(seconds=1) == 255
            mends()
            assert reach(seconds=20) == 0  # a busy machine takes its time


def test_rate(folder: Path) -> None:
    with Cluster(2, folder) as cluster:
        first, second = cluster
        second.rate("10mbit")
        start = time.monotonic()
        assert first.run(["ssh", "host2", "head -c 2500000 /dev/zero"]).returncode == 0  # 20 Mbit
        assert time.monotonic() - start > 1.4
        second.rate(None)


def test_a_file_system_of_one_host(folder: Path) -> None:
    with Cluster(2, folder) as cluster:
        first, second = cluster
        place = folder / "disk"
        place.mkdir()
        second.mount_tmpfs(place, "1m")
        (place / "file").write_text("seen by host1 only")
        assert second.run(["ls", place]).stdout == ""
        full = second.run(["dd", "if=/dev/zero", f"of={place}/full", "bs=1M", "count=2"])
        assert "No space left" in full.stdout
        second.unmount(place)
        assert second.run(["ls", place]).stdout == first.run(["ls", place]).stdout == "file\n"
