"""Jobs of one rank each on two test hosts, whose link has a rate and a delay."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import BIN, ROOT

sys.path.insert(0, str(ROOT))  # for the test hosts

from tests.cluster import hosts, links

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def two_hosts() -> contextlib.AbstractContextManager[hosts.Cluster]:
    """host1 and host2 on a switch."""
    return some_hosts(2)


@contextlib.contextmanager
def some_hosts(count: int) -> Iterator[hosts.Cluster]:
    """host1 and more on a switch."""
    reason = hosts.why_not() or links.why_not()
    if reason is not None:
        sys.exit(f"error: {reason}")
    with tempfile.TemporaryDirectory(prefix="hosts-") as name:
        Path(name).chmod(0o755)
        with hosts.Cluster(count, Path(name)) as cluster:
            yield cluster


def environment() -> dict[str, str]:
    """Of a rank: one thread, this checkout."""
    cache = os.environ.get("XDG_CACHE_HOME", "/root/.cache")
    return {
        "PATH": f"{BIN}:{SYSTEM_PATH}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": cache,
    }


def run_on_both(cluster: hosts.Cluster, command: list[str], port: int, timeout: float = 300) -> str:
    """Run the command as rank 0 on host1 and as rank 1 on host2, through torch; what rank 0 printed."""
    address = cluster["host1"].address
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    own = {**environment(), **ranks, "LOCAL_WORLD_SIZE": "1"}
    log = cluster.folder / "rank1.log"
    other = cluster["host2"].start(command, env={**own, "RANK": "1"}, log=log, cwd=ROOT)
    done = cluster["host1"].run(command, env={**own, "RANK": "0"}, cwd=ROOT, timeout=timeout)
    code = other.wait(60)
    if done.returncode or code:
        raise RuntimeError(f"{command}: {done.stdout}{log.read_text()}")
    return done.stdout
