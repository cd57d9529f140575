"""What every launcher tells the processes that it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

# Of the batch systems around a launcher; the same when the job is put back into the queue.
JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


@dataclass(frozen=True)
class Launcher:
    """How this process was started. A subclass is one launcher: it names the variables to read.

    Variables that are left over must not make this process a rank of a job that does not exist. So what does
    not fit together is no launch.

    Attributes:
        rank: of this process.
        size: number of ranks.
        local_rank: number among the ranks of this host; None where the launcher does not tell.
        local_size: ranks on this host; None where the launcher does not tell.
        job_id: of the batch system's job; empty where there is none.
        restarts_ranks: whether ranks may come and go while the job runs.
        address: host and port of the launcher itself, which can be called; None where it does not tell.
        restarts: how often the launcher has started all ranks anew after losing some, as this host counts.
        most_restarts: how often it does so.
        keeps_store: whether it serves the store of ``torch.distributed`` itself, at ``address``.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    local_size: int | None = None
    job_id: str = ""
    restarts_ranks: bool = False
    address: tuple[str, int] | None = None
    restarts: int = 0
    most_restarts: int = 0
    keeps_store: bool = False

    name: ClassVar[str]
    ranks_meet: ClassVar[bool] = True  # whether a back end lets its ranks find each other
    for_torch: ClassVar[bool] = False  # whether it tells ranks where they meet, as torch.distributed wants it
    over_mpi: ClassVar[bool] = False  # whether its ranks find each other by MPI
    rank_name: ClassVar[str]
    size_name: ClassVar[str]
    local_rank_name: ClassVar[str] = ""
    local_size_name: ClassVar[str] = ""
    restarts_name: ClassVar[str] = ""
    most_restarts_name: ClassVar[str] = ""

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> Launcher | None:
        """This launcher, where it started the process whose environment it is."""
        rank, size = number(environ, cls.rank_name), number(environ, cls.size_name)
        if rank is None or size is None or rank >= size or not cls.is_whole(environ):
            return None
        return cls(
            rank,
            size,
            number(environ, cls.local_rank_name),
            cls.ranks_here(environ),
            next((environ[name] for name in JOB_IDS if environ.get(name)), ""),
            cls.is_elastic(environ),
            cls.own_address(environ),
            number(environ, cls.restarts_name) or 0,
            number(environ, cls.most_restarts_name) or 0,
            cls.serves(environ),
        )

    @classmethod
    def is_whole(cls, environ: Mapping[str, str]) -> bool:
        """Whether the rest of what this launcher sets is there too."""
        return True

    @classmethod
    def ranks_here(cls, environ: Mapping[str, str]) -> int | None:
        """Ranks on this host."""
        return number(environ, cls.local_size_name)

    @classmethod
    def is_elastic(cls, environ: Mapping[str, str]) -> bool:
        """Whether ranks may come and go."""
        return False

    @classmethod
    def serves(cls, environ: Mapping[str, str]) -> bool:
        """Whether it keeps a store for its ranks."""
        return False

    @classmethod
    def own_address(cls, environ: Mapping[str, str]) -> tuple[str, int] | None:
        """Where the launcher itself listens."""
        return None


def number(environ: Mapping[str, str], name: str) -> int | None:
    """A whole number, 0 or more; None for anything else."""
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
