"""What horovodrun is told of a job whose ranks come and go: how many, on which hosts, how patient it is."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch.hostfile import Host

DISCOVERY = Path(__file__).with_name("discover_hosts.sh")
GLOO_SECONDS = 30  # shorter than a rank's start it would end the job
COOLDOWN_SECONDS = (10, 60)  # after which a host that failed is used again
MORE_PATIENCE = 30  # seconds by which horovodrun outlasts the ranks, which end with a checkpoint


@dataclass(frozen=True)
class Elastic:
    """The bounds of an elastic job.

    Args:
        first: ranks that must be there for the job to begin.
        least: ranks below which it waits for hosts.
        most: ranks it has at most; None for all slots there are.
        wait_s: seconds that the ranks wait when they are too few.
        hostfile: absolute path of the file that is read anew each second; None where the hosts are fixed.
    """

    first: int
    least: int
    most: int | None
    wait_s: float
    hostfile: Path | None

    def options(self, hosts: Sequence[Host]) -> list[str]:
        """horovodrun's; ``hosts`` are those known so far."""
        most = [] if self.most is None else ["--max-np", str(self.most)]
        return [
            *("-np", str(self.first), "--min-np", str(self.least), *most),
            *("--host-discovery-script", self._discovery(hosts)),
            *("--blacklist-cooldown-range", *map(str, COOLDOWN_SECONDS)),
            *("--elastic-timeout", str(math.ceil(self.wait_s) + MORE_PATIENCE)),
            *("--gloo-timeout-seconds", str(GLOO_SECONDS)),
        ]

    def _discovery(self, hosts: Sequence[Host]) -> str:
        """A line for the shell that horovodrun gives it to."""
        if self.hostfile is None:
            where = ["-u", "HOSTFILE", f"HOSTS={','.join(map(str, hosts))}"]
        else:
            where = [f"HOSTFILE={self.hostfile}"]
        return shlex.join(["env", *where, "bash", str(DISCOVERY)])


def bounds(slots: int, first: int | None, least: int | None, most: int | None) -> tuple[int, int, int | None]:
    """(ranks to begin with, at least, at most) of a job; what is None is chosen.

    It begins with a rank in each of the ``slots``, goes on while one is left, and takes all that come.

    Raises:
        UserError: they do not fit each other.
    """
    for flag, count in (("-np", first), ("--min-np", least), ("--max-np", most)):
        if count is not None and count < 1:
            raise UserError(f"{count} ranks are none", where=flag)
    begin = min(slots, most or slots) if first is None else first
    if begin > slots:
        raise UserError(
            f"{begin} ranks do not fit {slots} slots", where="-np", fix="name more slots or hosts"
        )
    if most is not None and begin > most:
        raise UserError(f"{begin} ranks to begin with are more than --max-np {most}", where="-np")
    if least is not None and least > begin:
        raise UserError(f"{least} ranks at least are more than the {begin} to begin with", where="--min-np")
    return begin, 1 if least is None else least, most
