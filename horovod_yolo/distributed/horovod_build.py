"""What the Horovod of this Python was built with, read from its file.

Loading it takes seconds and needs torch, and horovodrun of `horovod-yolo install-horovod` does not look. The
library has the names in it that only code of MPI, Gloo or NCCL needs.
"""

from __future__ import annotations

import mmap
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

_NAMES = {"MPI": b"MPI_Allreduce", "Gloo": b"HOROVOD_GLOO_RENDEZVOUS_ADDR", "NCCL": b"ncclAllReduce"}


def horovod_built_with() -> tuple[str, ...] | None:
    """MPI, Gloo, NCCL: what is there of them. None where there is no Horovod for torch and this Python."""
    spec = find_spec("horovod")
    folders = (spec and spec.submodule_search_locations) or ()
    files = (
        Path(folder, "torch", f"mpi_lib_v2{suffix}") for folder in folders for suffix in EXTENSION_SUFFIXES
    )
    library = next((file for file in files if file.is_file()), None)
    if library is None:
        return None
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return tuple(name for name, symbol in _NAMES.items() if content.find(symbol) >= 0)
