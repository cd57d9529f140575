"""``horovodrun`` over Gloo. Over MPI it is `OpenMpi`, whose variables the ranks see."""

from __future__ import annotations

from collections.abc import Mapping

from horovod_yolo.distributed.launchers.launcher import Launcher, number


class Horovodrun(Launcher):
    """Its ranks meet at an address of the launcher's. In an elastic job the numbers are the first ones."""

    name = "horovodrun"
    rank_name, size_name = "HOROVOD_RANK", "HOROVOD_SIZE"
    local_rank_name, local_size_name = "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"

    @classmethod
    def is_whole(cls, environ: Mapping[str, str]) -> bool:
        """With the address: without it Horovod itself would look for MPI."""
        return cls.own_address(environ) is not None

    @classmethod
    def is_elastic(cls, environ: Mapping[str, str]) -> bool:
        """As its launch with ``--min-np`` and a discovery script says."""
        return environ.get("HOROVOD_ELASTIC") == "1"

    @classmethod
    def own_address(cls, environ: Mapping[str, str]) -> tuple[str, int] | None:
        """That of the rendezvous."""
        host = environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "")
        port = number(environ, "HOROVOD_GLOO_RENDEZVOUS_PORT")
        return (host, port) if host and port is not None else None
