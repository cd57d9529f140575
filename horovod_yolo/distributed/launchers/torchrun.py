"""``torchrun``, and all that starts ranks in the same way, as Kubeflow's jobs for PyTorch do."""

from __future__ import annotations

from collections.abc import Mapping

from horovod_yolo.distributed.launchers.launcher import Launcher, number


class Torchrun(Launcher):
    """Its ranks meet at the address that it names."""

    name = "torchrun"
    for_torch = True
    rank_name, size_name = "RANK", "WORLD_SIZE"
    local_rank_name, local_size_name = "LOCAL_RANK", "LOCAL_WORLD_SIZE"
    restarts_name, most_restarts_name = "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"

    @classmethod
    def is_whole(cls, environ: Mapping[str, str]) -> bool:
        """With an address. A job of one needs none, unless torchrun says that it is its rank."""
        several = (number(environ, cls.size_name) or 0) > 1
        return cls.own_address(environ) is not None and (several or "TORCHELASTIC_RUN_ID" in environ)

    @classmethod
    def own_address(cls, environ: Mapping[str, str]) -> tuple[str, int] | None:
        """Of the store where ranks meet."""
        host, port = environ.get("MASTER_ADDR", ""), number(environ, "MASTER_PORT")
        return (host, port) if host and port is not None else None

    @classmethod
    def serves(cls, environ: Mapping[str, str]) -> bool:
        """An agent does; without one rank 0 has to."""
        return environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
