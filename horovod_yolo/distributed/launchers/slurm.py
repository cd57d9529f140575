"""Slurm's ``srun --mpi=pmix``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from horovod_yolo.distributed.launchers.launcher import Launcher, number


class Slurm(Launcher):
    """A task of a job step. A batch script, or ``python train.py`` inside ``salloc``, is alone."""

    name = "srun"
    over_mpi = True
    rank_name, size_name = "PMIX_RANK", "SLURM_NTASKS"
    local_rank_name = "SLURM_LOCALID"

    @classmethod
    def is_whole(cls, environ: Mapping[str, str]) -> bool:
        """A batch script has SLURM_NTASKS, SLURM_PROCID=0 and no PMIX_RANK."""
        same = number(environ, "SLURM_PROCID") == number(environ, cls.rank_name)
        several = (number(environ, cls.size_name) or 0) > 1
        return same and several and number(environ, "SLURM_STEP_ID") is not None

    @classmethod
    def ranks_here(cls, environ: Mapping[str, str]) -> int | None:
        """Of ``4(x2),3``, which means 4, 4 and 3 tasks, this node's."""
        counts: list[int] = []
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
            counts += [int(count)] * int(times or 1)
        node = number(environ, "SLURM_NODEID")
        return counts[node] if node is not None and node < len(counts) else None
