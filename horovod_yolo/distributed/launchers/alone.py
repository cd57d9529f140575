"""No launcher."""

from __future__ import annotations

from collections.abc import Mapping

from horovod_yolo.distributed.launchers.launcher import Launcher


class Alone(Launcher):
    """A process started by hand: a job of one rank."""

    name = "no launcher"

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> Launcher:
        """Always: nobody has to say that a process is alone."""
        return cls(local_rank=0, local_size=1)
