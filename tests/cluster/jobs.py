"""Jobs on test hosts: the environment that a login there would have, and the way to start and judge them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.hosts import Host
from tests.helpers.ranks import BIN, REPOSITORY, Finished

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def environment(**variables: str) -> dict[str, str]:
    """The variables of a user with the environment active; this checkout goes before an installed one."""
    return {
        "PATH": f"{BIN}:{SYSTEM_PATH}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"],
        **variables,
    }


def run(
    host: Host,
    command: Sequence[str | Path] | str,
    *,
    timeout: float = 240,
    user: str | None = None,
    cwd: Path = REPOSITORY,
    **variables: str,
) -> Finished:
    """Run a launcher on a host and wait for the job's end; a string is split as a shell would."""
    words = shlex.split(command) if isinstance(command, str) else command
    done = host.run(words, timeout=timeout, env=environment(**variables), user=user, cwd=cwd)
    return Finished(done.returncode, done.stdout)
