"""Data sets by name, for all ranks: what each command that takes a data file calls first."""

from __future__ import annotations

from functools import partial

from horovod_yolo.data import named
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator


def data_here(data: str, comm: Communicator) -> str:
    """The data.yaml that is meant: a built-in set is made where it is not there yet. *Collective.*

    Every host needs the files: rank 0 makes them, then the first rank of each host to which they are not
    there. Nothing where no data is named.

    Raises:
        UserError: a set that is known and not here, or one that cannot be made.
    """
    if on_rank_0(comm, partial(named.is_built_in, data)):  # another host may have a folder of this name
        for makes in (comm.rank == 0, comm.local_rank == 0):
            together(comm, partial(named.make if makes else named.file_of, data))
        return str(named.file_of(data))
    together(comm, partial(named.refuse_known, data))
    return data
